"""`unweft experiment sequence`: scenarios, measures, output."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from emulation.analysis.records import RunRecords
from emulation.experiments import sequence, unlearners
from emulation.experiments.arms import ARMS
from emulation.experiments.catalogue import DEFAULT, SCALES
from emulation.experiments.grid import Cell
from emulation.experiments.request import Request
from emulation.experiments.sequence import ROUNDS, SequenceCell
from emulation.scenario.loading import dump, load
from peers.errors import InputError


def cell(arm: str = "uniform", scale: str = "smoke", seed: int = 0) -> SequenceCell:
    return SequenceCell(DEFAULT, ARMS[arm], seed, SCALES[scale])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("arm", ["uniform", "dominant", "naive", "handover"])
def test_every_scenario_is_valid(arm: str, scale: str, tmp_path: Path) -> None:
    (tmp_path / "cell.toml").write_text(dump(cell(arm, scale).scenario()))
    assert load(tmp_path / "cell.toml").round.count == ROUNDS[scale]


def test_the_full_scale_has_the_papers_events() -> None:
    scenario = cell(scale="full").scenario()
    found = [(e.kind, e.device, e.round) for e in scenario.events]
    assert found == [("leave", "d0", 200), ("join", "d8", 300), ("leave", "d1", 500), ("join", "d9", 700)]
    assert scenario.correction.rounds > 100  # the first join falls into the correction of the first leave
    assert [e.kind for e in cell("naive", "full").scenario().events] == ["retire", "join", "retire", "join"]


def test_a_baseline_unlearns_at_both_leaves_with_the_devices_that_are_there() -> None:
    first, second = cell("federaser", "full").leaves
    assert first == (200, "d0", ("d1", "d2", "d3", "d4", "d5", "d6", "d7"))
    assert second == (500, "d1", ("d2", "d3", "d4", "d5", "d6", "d7", "d8"))


def records(loss: float) -> RunRecords:
    scenario = cell().scenario()  # d0 leaves at 4, d8 joins at 6

    def line(device: str, round_: int, known: float) -> dict[str, Any]:
        shards = {"d0": 0.25, "d1": known, "d2": known}
        nats = dict.fromkeys(shards, loss) | {"d0": 99.0 if round_ > 4 else loss}
        return {"device": device, "round": round_, "tag": "round", "accuracy": shards, "loss": nats}

    lines = [line(d, 4, 0.5) for d in ("d0", "d1", "d2")] + [line(d, 5, 0.75) for d in ("d1", "d2")]
    words = {"d0": 0.0, "d1": 0.5, "d2": 1.0}
    ends = [{"device": d, "round": 5, "tag": "end", "other_wording": words} for d in ("d1", "d2")]
    spent = {"round": 5, "steps": 3, "cpu_s": 0.5, "links": {"d2": {"sent_bytes": 70}}}
    metrics = {d: [{**spent, "norms": {"d0@0": {}, f"{d}@0": {}}}] for d in ("d1", "d2")}
    return RunRecords(Path("run"), scenario, ["d0", "d1", "d2"], metrics, evaluations=[*lines, *ends])


def test_measures_of_a_run() -> None:
    before, after = sequence.measure(records(2.0))["curve"]
    assert before == {"round": 4, "devices": 3, "loss": 2.0, "retain": pytest.approx(5 / 12), "forget": None}
    assert after == {"round": 5, "devices": 2, "loss": 2.0, "retain": 0.75, "forget": 0.25}


def test_costs_are_of_all_devices_and_the_test_accuracy_of_those_that_are_present() -> None:
    found = sequence.measure(records(2.0))
    assert (found["steps"], found["cpu_s"], found["sent_bytes"]) == (6, 1.0, 140)
    assert found["test"] == 1.0  # of d2 by d2: d0 and d1 have left at the end
    assert found["kept"] == 1  # d2 still has the block of d0


def test_the_experiment_compares_with_uniform(tmp_path: Path) -> None:
    def run_one(cell: Cell, folder: Path, console: Console) -> dict[str, Any]:
        loss = 2.0 if cell.arm.name == "uniform" else 1.5
        key = {"setting": cell.setting.name, "arm": cell.arm.name, "seed": cell.seed, "prefix_sha256": None}
        return {**key, **sequence.measure(records(loss)), "stored_bytes": 0}

    asked = Request(SCALES["smoke"], ("uniform", "naive"), (0, 1), tmp_path)
    sequence.run(asked, Console(quiet=True), run_one)
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert len(rows) == 8 and {float(r["ri"]) for r in rows if r["arm"] == "naive"} == {25.0}
    summary = json.loads((tmp_path / "results.json").read_text())["summary"]
    assert [e["arm"] for e in summary] == ["uniform", "naive"]
    assert summary[1]["ri_mean"]["mean"] == 25.0 and summary[0]["ri_end"]["mean"] == 0.0
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_arms() -> None:
    assert sequence.choose_arms("") == sequence.USUAL
    assert sequence.choose_arms("naive") == ("uniform", "naive")
    baselines = ("naive", "ewc-leave", "influence", "kd-unlearn", "federaser")
    assert sequence.choose_arms(",".join(baselines)) == ("uniform", *baselines)
    for name in ("oracle", "naive-remove"):
        with pytest.raises(InputError, match=f"--arms: '{name}' is no arm of sequence; allowed: dominant"):
            sequence.choose_arms(name)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_baselines_are_runs_of_the_whole_sequence(tmp_path: Path) -> None:
    """Runs devices: only a whole run shows that the devices unlearn at both leaves, and carry on."""
    found = {
        name: sequence.run_and_measure(cell(name), tmp_path / name, Console(quiet=True))
        for name in ("naive", "influence", "kd-unlearn", "federaser")
    }
    assert [found[name]["kept"] for name in found] == [2, 2, 2, 0]
    assert found["naive"]["stored_bytes"] == 0 < found["federaser"]["stored_bytes"]
    naive = found["naive"]
    for name in ("influence", "kd-unlearn"):
        assert found[name]["sent_bytes"] > naive["sent_bytes"]
        curves = zip(naive["curve"], found[name]["curve"], strict=True)
        differs = [a["round"] for a, b in curves if a["loss"] != b["loss"]]
        assert 4 < min(differs) <= 6  # d0 leaves at 4
    assert found["kd-unlearn"]["steps"] == naive["steps"] + 2 * unlearners.KD_STEPS
