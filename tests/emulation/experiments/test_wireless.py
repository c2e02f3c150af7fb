"""`unweft experiment wireless`: scenarios, arms, measures, output."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from emulation.analysis.records import RunRecords
from emulation.experiments import wireless
from emulation.experiments.arms import BEFORE
from emulation.experiments.catalogue import SCALES
from emulation.experiments.grid import Cell, set_all
from emulation.experiments.request import Request
from emulation.experiments.wireless import LIMITS, SETTING, WirelessCell, arms, choose_arms
from emulation.scenario.loading import dump, load
from emulation.scenario.schema import Scenario
from peers.errors import InputError

SMOKE = SCALES["smoke"]


@pytest.mark.parametrize("scale", ["smoke", "compact"])
def test_every_scenario_is_valid_and_limited(scale: str, tmp_path: Path) -> None:
    size, path = SCALES[scale], tmp_path / "cell.toml"
    for arm in arms(size).values():
        path.write_text(dump(WirelessCell(SETTING, arm, 0, size).scenario()))
        radio = load(path).radio
        own = (size.devices - 1) * wireless.BLOCK_BYTES
        assert radio.budget_bytes <= own or radio.tau_max_s is not None


def test_all_arms_of_a_seed_resume_one_checkpoint() -> None:
    cells = [WirelessCell(SETTING, arm, 3, SMOKE) for arm in arms(SMOKE).values()]
    assert {cell.before.name for cell in cells if cell.before} == {"wireless/before/seed-3"}
    assert len({cell.name for cell in cells}) == len(cells)
    assert all(cell.name.count("/") == 2 for cell in cells)


def test_a_limit_that_no_matrix_fits_is_refused_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"radio\.budget_bytes: 27648 bytes in a round cannot carry"):
        wireless.check(Request(SCALES["small"], ("budget-25/fifo", "budget-12/fifo"), (0,), tmp_path))


@pytest.mark.parametrize("scale", ["smoke", "small", "compact"])
def test_all_arms_that_are_run_by_default_are_possible(scale: str, tmp_path: Path) -> None:
    size = SCALES[scale]
    names = choose_arms("", size)
    wireless.check(Request(size, names, (0,), tmp_path))
    assert ("budget-12/fifo" in names) == (scale == "compact")


def test_arms_are_chosen_by_limit_allocator_or_both() -> None:
    size = SCALES["compact"]
    assert len(choose_arms("", size)) == len(LIMITS) * len(wireless.ALLOCATORS) - 2
    assert len(choose_arms("budget-25", size)) == len(wireless.ALLOCATORS)
    assert choose_arms("tau-25", size) == ("tau-25/equal-share", "tau-25/random", "tau-25/residual")
    assert len(choose_arms("residual", size)) == len(LIMITS)
    assert choose_arms("tau-25,residual", size) == ("tau-25/residual",)
    assert choose_arms("budget-25/fifo", size) == ("budget-25/fifo",)
    assert choose_arms("", SMOKE) == wireless.SMOKE_ARMS
    with pytest.raises(InputError, match="allowed"):
        choose_arms("oracle", size)


def test_a_limit_binds_in_the_rounds_that_withhold() -> None:
    cell = WirelessCell(SETTING, arms(SMOKE)["budget-25/fifo"], 0, SMOKE)
    after = cell.event_round + 1
    lines = [{"round": r, "withheld": n} for r, n in ((after - 1, 9), (after, 0), (after + 1, 2))]
    run = RunRecords(Path(), Scenario(), [*cell.survivors], dict.fromkeys(cell.survivors, lines), {}, [], {})
    assert wireless.binds(run, cell) == 0.5


def test_a_verdict_about_a_survivor_is_a_false_verdict() -> None:
    cell = WirelessCell(SETTING, arms(SMOKE)["budget-25/fifo"], 0, SMOKE)
    first, second = cell.survivors[:2]
    gone = [
        {"event": "peer_gone", "peer": p, "kind": k} for p, k in ((cell.leaver, "leave"), (second, "crash"))
    ]
    events = {device: [{"event": "round"}] for device in cell.survivors} | {first: gone}
    run = RunRecords(Path(), Scenario(), [*cell.survivors], {}, events, [], {})
    assert wireless.false_verdicts(run, cell) == 1


def made(one: Cell, folder: Path, console: Console) -> dict[str, Any]:
    key = {"setting": "wireless", "arm": one.arm.name, "seed": one.seed, "prefix_sha256": None}
    if one.arm == BEFORE:
        return key
    better = 0.1 * (one.seed + 1) * one.arm.name.endswith("residual")
    curve = [{"k": k, "retain": 0.1 * k + better, "bytes": 1e6 * k} for k in range(5)]
    return {**key, "curve": curve, "binds": 0.75, "false_verdicts": 2}


def test_an_experiment_writes_rows_and_pairs_its_gains(tmp_path: Path) -> None:
    console = Console(record=True, width=160)
    wireless.run(Request(SMOKE, wireless.SMOKE_ARMS, (0, 1), tmp_path), console, made)
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [(r["limit"], r["allocator"], r["seed"]) for r in rows] == [
        ("budget-50", a, s) for s in "01" for a in ("fifo", "residual")
    ]
    fifo, residual = json.loads((tmp_path / "results.json").read_text())["summary"]
    assert fifo["gain"] is None and residual["gain"]["mean"] == pytest.approx(0.15)
    assert (fifo["half"]["mean"], fifo["retain"]["mean"]) == pytest.approx((0.2, 0.4))
    assert {row["false_verdicts"] for row in rows} == {"2"} and fifo["false_verdicts"]["mean"] == 2
    assert "2.0 (2/2)" in console.export_text(clear=False)
    assert "budget-50" in console.export_text()


def test_a_change_may_name_a_section_of_a_section() -> None:
    data: dict[str, Any] = {"radio": {"kind": "wireless"}}
    set_all(data, {"radio.wireless.interference": 0.5, "train.lr": 0.1})
    assert data == {"radio": {"kind": "wireless", "wireless": {"interference": 0.5}}, "train": {"lr": 0.1}}


def test_fifo_is_no_arm_where_it_does_not_observe_the_limit() -> None:
    assert {name.partition("/")[0] for name in arms(SMOKE) if name.endswith("/fifo")} == {
        limit for limit in LIMITS if not limit.startswith("tau")
    }
    rows = [
        {"limit": "tau-25", "allocator": a, "seed": s, "retain": r, "half": 0.0, "bytes": 1.0, "binds": 1.0}
        | {"false_verdicts": 0}
        for s in (0, 1)
        for a, r in (("equal-share", 0.25), ("residual", 0.75 + s / 4))
    ]
    first, second = wireless.aggregate(rows)
    assert first["gain"] is None and second["gain"]["mean"] == pytest.approx(0.625)
