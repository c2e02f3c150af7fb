"""Experiments on texts of one's own: what they lack is left out, and what they need is refused at once."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from rich.console import Console

from emulation.analysis.records import RunRecords
from emulation.experiments import changes, grid, run, sequence
from emulation.experiments.catalogue import EXPERIMENTS, SCALES
from emulation.experiments.request import Request
from emulation.experiments.statistics import tow
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from peers.tasks import make_task, texts

SMOKE = SCALES["smoke"]


def request(folder: Path, devices: int = SMOKE.devices) -> Request:
    """An experiment with a file for each of these devices."""
    files = folder / "data"
    files.mkdir()
    facts = make_task(Scenario().device_config())
    for device in (f"d{n}" for n in range(devices)):
        lines = [
            {"prompt": e.prompt, "response": e.response} for e in texts(facts.train_examples(device))[:4]
        ]
        (files / f"{device}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    set_ = changes.parse(["data.kind=jsonl", f"data.path={files}", 'eval.metrics=["probability"]'])
    return Request(SMOKE, ("uniform", "oracle"), (0,), folder / "out", changes=set_)


def test_an_experiment_runs_on_files_and_reports_their_metrics(tmp_path: Path) -> None:
    asked, console = request(tmp_path), Console(record=True, width=160)
    experiment = changes.changed(EXPERIMENTS["ablation"], asked.changes)
    run.check(experiment, asked)
    run.run(experiment, asked, console)
    (row, _) = csv.DictReader((tmp_path / "out/rows.csv").read_text().splitlines())
    assert (row["arm"], row["test"], row["tow"], row["auc"]) == ("uniform", "", "", "")
    assert float(row["loss"]) > 0 and 0 < float(row["probability_retain"]) < 1
    assert 0 < float(row["probability_forget"]) < 1


def test_a_device_without_a_file_is_refused_before_the_start(tmp_path: Path) -> None:
    asked = request(tmp_path, devices=SMOKE.devices - 1)
    with pytest.raises(InputError, match=r"d2\.jsonl"):
        run.check(changes.changed(EXPERIMENTS["ablation"], asked.changes), asked)


@pytest.mark.parametrize("experiment", ["ablation", "joins"])
def test_a_size_of_the_device_of_the_event_is_no_error_in_the_runs_without_it(experiment: str) -> None:
    leaver = f"d{SMOKE.devices - 1}"
    sets = changes.parse(["data.kind=authors", f"data.sizes={{d0 = 3, {leaver} = 2}}"])
    asked = changes.changed(EXPERIMENTS[experiment], sets)
    made = [cell.scenario() for cell in grid.cells(asked, ("uniform", "oracle"), SMOKE, (0,))]
    known = [leaver in scenario.all_devices for scenario in made]
    assert {True, False} == set(known)
    assert [leaver in scenario.data.sizes for scenario in made] == known
    assert {scenario.data.sizes["d0"] for scenario in made} == {3}
    wrong = changes.changed(asked, changes.parse(["data.sizes={d77 = 3}"]))
    with pytest.raises(InputError, match=r"data\.sizes: 'd77' is no device of the run; allowed: d0, d1"):
        grid.cells(wrong, ("uniform",), SMOKE, (0,))[0].scenario()


def test_tow_needs_all_accuracies() -> None:
    assert tow([0.1, None, 0.0]) is None and tow([0.1, -0.5]) == pytest.approx(0.45)


def test_a_sequence_of_data_without_another_wording_has_no_test_accuracy() -> None:
    end = {"device": "d1", "tag": "end", "round": 3}
    assert sequence._test(RunRecords(Path(), Scenario(), ["d1"], evaluations=[end]), {}) is None
