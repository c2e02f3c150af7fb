"""`unweft experiment allocation`: scenarios, measures, output."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coordinator_free.averaging.rate_allocation import ALLOCATORS
from emulation.analysis.records import RunRecords
from emulation.experiments import allocation
from emulation.experiments.allocation import ARMS, AllocationCell, aggregate, budget_bytes
from emulation.experiments.catalogue import SCALES, Setting
from emulation.experiments.grid import Cell
from emulation.experiments.request import Request
from emulation.scenario.loading import dump, load
from emulation.scenario.schema import Scenario
from peers.learning.learner import Learner
from peers.models.loader import load_model
from peers.tasks import tasks
from transport.wire.codec_names import payload_bytes

SMOKE = SCALES["smoke"]


def cell(arm: str, scale: str = "smoke") -> AllocationCell:
    return AllocationCell(Setting("tight", ""), ARMS[arm], 0, SCALES[scale])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("arm", ARMS)
def test_every_scenario_is_valid(arm: str, scale: str, tmp_path: Path) -> None:
    path = tmp_path / "cell.toml"
    path.write_text(dump(cell(arm, scale).scenario()))
    assert load(path).radio.budget_bytes == budget_bytes(SCALES[scale])


def test_every_allocator_is_an_arm() -> None:
    assert {*allocation.ALLOCATORS, "priced"} == set(ALLOCATORS)  # `pricing` has an experiment of its own


def test_the_budget_is_a_tenth_of_everything() -> None:
    config = cell("fifo").scenario().device_config()
    loaded = load_model(config.model)
    examples = loaded.encode(tasks.get("facts")(config.data, 0).train_examples("d0"), 128)
    layout = Learner(loaded, config, examples, "d0").layout
    whole = sum(payload_bytes("fp16", layout.rows(g), layout.rank(g)) for g in layout.groups)
    assert budget_bytes(SMOKE) == round(0.1 * 3 * 2 * whole)


def test_measures_of_a_run(tmp_path: Path) -> None:
    def line(round_: int, sent: int) -> dict[str, Any]:
        return {
            "round": round_,
            "t1_s": round_,
            "links": {"d1": {"sent_bytes": sent}},
            "sent": {"early": {"int4": 3}},
        }

    metrics = {"d0": [line(0, 100), line(1, 250)], "d1": [line(0, 300), line(1, 450)]}
    evaluations = [
        {"tag": "round", "round": r, "device": d, "accuracy": {"d0": a, "d1": a}}
        for r, a in ((0, 0.5), (1, 0.9))
        for d in metrics
    ]
    run = RunRecords(
        tmp_path, Scenario(), ["d0", "d1"], metrics, {"d0": [], "d1": []}, evaluations, {1: 0.25}
    )
    found = allocation.measure(run)
    assert found["accuracy"] == pytest.approx(0.9) and found["consensus"] == 0.25
    assert (found["rounds"], found["bytes"], found["sent_bytes"]) == (2, 350, 350)
    assert (found["fp16"], found["int8"], found["int4"]) == (0, 0, 1)


def made(one: Cell, folder: Path, console: Console) -> dict[str, Any]:
    figures = dict.fromkeys(("accuracy", "consensus", "sent_bytes", "fp16", "int8", "int4"), 0.5)
    reached = {"rounds": 7 if one.seed else None, "bytes": 3e6 if one.seed else None}
    key = {"setting": "tight", "arm": one.arm.name, "seed": one.seed, "prefix_sha256": None}
    return {**key, **figures, **reached, "curve": []}


def test_an_experiment_writes_rows_and_results(tmp_path: Path) -> None:
    console = Console(record=True, width=140)
    allocation.run(Request(SMOKE, ("fifo", "residual"), (0, 1), tmp_path), console, made)
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [(r["arm"], r["seed"]) for r in rows] == [(a, s) for s in "01" for a in ("fifo", "residual")]
    found = json.loads((tmp_path / "results.json").read_text())["summary"]
    assert [(e["arm"], e["reached"], e["seeds"]) for e in found] == [("fifo", 1, 2), ("residual", 1, 2)]
    assert found[0]["rounds"]["mean"] == 7
    assert "residual" in console.export_text()


def test_an_arm_that_never_reached_the_target_has_no_rounds() -> None:
    one = made(cell("fifo"), Path(), Console())
    assert aggregate([one])[0]["rounds"] is None


def test_the_gain_is_paired_with_the_best_codec_of_the_same_seed() -> None:
    accuracy = {("fifo-int4", 0): 0.5, ("fifo-int4", 1): 0.7, ("residual", 0): 0.6, ("residual", 1): 0.9}
    rows = []
    for (arm, seed), value in accuracy.items():
        made_one = made(replace(cell(arm), seed=seed), Path(), Console())
        rows.append({**made_one, "accuracy": value})
    best, residual = aggregate(rows)
    assert best["gain"] is None and residual["gain"]["mean"] == pytest.approx(0.15)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_smoke_experiment_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "experiment"
    command = [str(Path(sys.executable).with_name("unweft")), "experiment", "allocation", "--scale", "smoke"]
    done = subprocess.run(
        [*command, "--arms", "fifo,residual", "--out", str(out)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "allocators at equal bytes" in done.stdout
    assert len(list(out.glob("tight/*/seed-100/measures.json"))) == 2
