"""Experiments: cells and scenarios, resuming, comparison, output."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from emulation.analysis.evaluator import DONE_MARKER, KEPT_SNAPSHOTS
from emulation.experiments import grid, metrics, runner
from emulation.experiments.arms import ARMS, BEFORE, NONE, ORACLE, UNIFORM
from emulation.experiments.catalogue import EXPERIMENTS, SCALES, choose_arms, choose_settings
from emulation.experiments.evaluation import write_mean
from emulation.experiments.grid import Cell
from emulation.experiments.request import Request
from emulation.experiments.run import run
from emulation.scenario.loading import dump, load
from emulation.scenario.preflight import check_against_model
from peers.errors import InputError
from peers.storage.snapshots import write_snapshot
from tests.support.experiment_measures import measured

ABLATION, REGIMES = EXPERIMENTS["ablation"], EXPERIMENTS["regimes"]
SMOKE = SCALES["smoke"]
QUIET = Console(quiet=True)


def cell(arm: str, seed: int = 0, scale: str = "smoke") -> Cell:
    return Cell(ABLATION.settings[0], ARMS[arm], seed, SCALES[scale])


# -- cells and their scenarios -------------------------------------------------------------------------
@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
@pytest.mark.parametrize("scale", SCALES)
def test_every_scenario_is_valid(experiment: Any, scale: str, tmp_path: Path) -> None:
    for one in grid.cells(experiment, experiment.arms, SCALES[scale], [0]):
        path = tmp_path / "s.toml"
        path.write_text(dump(one.scenario()))
        assert load(path).clock == "virtual"
        assert one.scale.learn % one.scale.every == one.scale.correct % one.scale.every == 0
        if one.arm.name == UNIFORM:  # loads the model
            check_against_model(one.scenario())


def test_branching_arms_differ_from_uniform_only_after_the_event() -> None:
    def before_event(arm: str) -> dict[str, Any]:
        found = cell(arm).scenario().model_dump(mode="json")
        for acts_after in ("policy", "refit", "fisher", "interference", "projection", "ewc", "steps_max"):
            found["correction"].pop(acts_after)
        return {key: value for key, value in found.items() if key not in ("name", "event")}

    for arm in ARMS.values():
        if arm.branches:
            assert before_event(arm.name) == before_event(UNIFORM), arm.name


def test_branching_arms_resume_the_common_checkpoint() -> None:
    branch, apart = cell(UNIFORM), cell("paper-literal")
    before = branch.before
    assert before is not None and apart.before is None
    learned = before.scenario()
    assert learned.checkpoint.save and learned.events == ()
    assert learned.initial_devices == branch.scenario().initial_devices
    assert before.rounds + branch.rounds == apart.rounds == SMOKE.learn + SMOKE.correct
    assert before.rounds + branch.event_round == apart.event_round


def test_the_oracle_has_no_leaver_and_trains_as_many_rounds() -> None:
    oracle, uniform = cell(ORACLE).scenario(), cell(UNIFORM).scenario()
    assert oracle.initial_devices == cell(UNIFORM).survivors == uniform.initial_devices[:-1]
    assert oracle.event == ()
    assert (oracle.seed, oracle.radio) == (uniform.seed, uniform.radio)
    assert cell(ORACLE).rounds == SMOKE.learn + SMOKE.correct


def test_a_join_has_the_newcomer_after_the_event_and_in_the_oracle_from_the_start() -> None:
    joins = EXPERIMENTS["joins"].settings[0]
    uniform, oracle = (Cell(joins, ARMS[arm], 0, SMOKE) for arm in (UNIFORM, ORACLE))
    before = uniform.before
    assert before is not None
    assert uniform.scenario().initial_devices == before.scenario().initial_devices == ("d0", "d1")
    assert [(e.kind, e.device) for e in uniform.scenario().event] == [("join", "d2")]
    assert oracle.scenario().initial_devices == ("d0", "d1", "d2")
    assert oracle.scenario().event == ()
    assert uniform.retained == ("d0", "d1", "d2")
    assert cell(UNIFORM).retained == ("d0", "d1")


def test_naive_keeps_the_block() -> None:
    assert [event.kind for event in cell("naive").scenario().event] == ["retire"]


def test_cells_are_ordered_by_seed_and_references_come_first() -> None:
    found = grid.cells(REGIMES, REGIMES.arms, SMOKE, (0, 1))
    assert [c.seed for c in found] == sorted(c.seed for c in found)
    assert found[0].arm is BEFORE
    assert {found[1].arm.name, found[2].arm.name} == {ORACLE, UNIFORM}
    assert NONE not in {c.arm.name for c in found}  # derived, not run
    assert len({c.name for c in found}) == len(found) == 2 * 3 * len(REGIMES.arms)  # none has no run


def test_chosen_arms_include_oracle_and_uniform() -> None:
    assert set(choose_arms(ABLATION, "dominant", SCALES["full"])) == {"dominant", UNIFORM, ORACLE}
    assert choose_arms(ABLATION, "", SCALES["full"]) == ABLATION.arms
    regimes = choose_settings(EXPERIMENTS["regimes"], "consensus,dominant")
    assert [setting.name for setting in regimes.settings] == ["consensus"]
    assert set(choose_arms(regimes, "consensus,dominant", SCALES["full"])) == {"dominant", UNIFORM, ORACLE}
    assert choose_settings(EXPERIMENTS["regimes"], "dominant") == EXPERIMENTS["regimes"]
    with pytest.raises(InputError, match="allowed: dominant"):
        choose_arms(ABLATION, "best", SCALES["full"])


# -- resuming --------------------------------------------------------------------------------------------
class Maker:
    """Replaces runs. Records the cells and can be interrupted."""

    def __init__(self, stop_at: str = "") -> None:
        self.made: list[str] = []
        self._stop_at = stop_at

    def __call__(self, one: Cell, folder: Path, console: Console) -> dict[str, Any]:
        (folder / "half-done").touch(exist_ok=False)
        if one.name == self._stop_at:
            raise KeyboardInterrupt
        self.made.append(one.name)
        better = 0.1 if one.arm.name == "dominant" else 0.0
        return measured(one.arm.name, 1.0, 0.5 - better, seed=one.seed)


def test_an_interrupted_experiment_continues(tmp_path: Path) -> None:
    wanted = grid.cells(ABLATION, ("dominant", UNIFORM, ORACLE), SMOKE, (0, 1))
    first, second = Maker(stop_at=wanted[3].name), Maker()
    with pytest.raises(KeyboardInterrupt):
        runner.run_cells(wanted, tmp_path, QUIET, first)
    found = runner.run_cells(wanted, tmp_path, QUIET, second)
    names = [c.name for c in wanted]
    assert (first.made, second.made) == (names[:3], names[3:])
    arms = [c for c in wanted if c.arm is not BEFORE]
    assert [(f["arm"], f["seed"]) for f in found] == [(c.arm.name, c.seed) for c in arms]


def test_a_cell_of_other_settings_is_refused(tmp_path: Path) -> None:
    runner.run_cell(cell(UNIFORM), tmp_path, QUIET, Maker())
    with pytest.raises(InputError, match="other settings"):
        runner.read_measures(cell(UNIFORM, scale="small"), tmp_path)


def test_arms_that_differ_before_the_event_are_refused() -> None:
    uniform, dominant = measured(UNIFORM, 1.0), measured("dominant", 1.0)
    runner.check_prefixes([uniform, dominant, measured(ORACLE, 1.0)])
    with pytest.raises(InputError, match="paper/dominant/seed-0: its rounds before the event"):
        runner.check_prefixes([uniform, {**dominant, "prefix_sha256": "other"}])


# -- measuring -------------------------------------------------------------------------------------------
def test_mean_model_counts_a_missing_copy_as_zero(tmp_path: Path) -> None:
    held = (
        {"d0@0/early": torch.full((2, 1), 2.0)},
        {"d0@0/early": torch.ones(2, 1), "d1@0/early": torch.ones(2, 1)},
    )
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path, tensors in zip(paths, held, strict=True):
        slots = {name.split("/")[0]: int(name[1]) for name in tensors}
        write_snapshot(path, tensors, slots, {"device": "d0", "round": "1", "tag": "round"})
    write_mean(paths, tmp_path / "mean.safetensors")
    means = load_file(tmp_path / "mean.safetensors")
    assert means["d0@0/early"].tolist() == [[1.5], [1.5]]
    assert means["d1@0/early"].tolist() == [[0.5], [0.5]]


def snapshots(folder: Path, names: dict[str, list[str]]) -> Path:
    for device, found in names.items():
        (folder / device).mkdir(parents=True)
        for name in found:
            (folder / device / f"{name}.safetensors").touch()
    return folder


def test_k_counts_from_the_event_and_starts_at_the_deletion(tmp_path: Path) -> None:
    names = ["00001-round", "00003-round", "00004-before-d2", "00004-deleted-d2", "00005-round", "00007-end"]
    kept = snapshots(tmp_path, {"d0": names, "d1": [*names, "00007-round"], "d2": ["00003-round"]})
    found = [
        (k, [p.name.split(".")[0] for p in paths])
        for k, paths in metrics.snapshots_by_k(cell(UNIFORM), kept, 3)
    ]
    assert found == [(0, ["00004-deleted-d2"] * 2), (2, ["00005-round"] * 2)]  # 7 lacks d0


def test_without_a_deletion_k_0_is_the_last_round_before_the_event(tmp_path: Path) -> None:
    kept = snapshots(tmp_path, {d: ["00003-round", "00005-round"] for d in ("d0", "d1")})
    assert [k for k, _ in metrics.snapshots_by_k(cell("naive"), kept, 3)] == [0, 2]
    assert [k for k, _ in metrics.snapshots_by_k(cell(ORACLE), kept, -1)] == [4, 6]


# -- the whole -------------------------------------------------------------------------------------------
def test_an_experiment_writes_rows_results_and_a_picture(tmp_path: Path) -> None:
    arms = ("dominant", UNIFORM, NONE, ORACLE)
    console = Console(record=True, width=80, file=(tmp_path / "said").open("w"))
    run(ABLATION, Request(SCALES["small"], arms, (0, 1, 2), tmp_path), console, Maker())
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * len(arms)
    results = json.loads((tmp_path / "results.json").read_text())
    dominant = next(e for e in results["summary"] if e["arm"] == "dominant")
    assert dominant["eg_minus_uniform"] == pytest.approx(
        {"mean": -0.1, "low": -0.1, "high": -0.1, "n": 3, "p": 0.0}
    )
    assert (tmp_path / "curves.png").stat().st_size > 1000
    said = console.export_text()
    assert "…" not in said
    assert "paper: forgetting" in said and "paper: costs" in said
    assert "small, development seeds 0-2; revision " in said
    console.file.close()


def test_snapshots_are_kept_if_the_run_has_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emulation.analysis import evaluator

    class Evaluator:
        def __init__(self, scenario: object) -> None: ...

        def score(self, snapshot: object) -> dict[str, Any]:
            return {}

        def add_to_consensus(self, path: Path) -> list[dict[str, Any]]:
            return []

        def last_consensus_errors(self) -> list[dict[str, Any]]:
            return []

        def cost(self) -> dict[str, Any]:
            return {}

    monkeypatch.setattr(evaluator, "Evaluator", Evaluator)
    monkeypatch.setattr(evaluator, "read_snapshot", lambda path: path)
    snapshots(tmp_path / "devices", {"d0/snapshots": ["00001-round"]})
    (tmp_path / KEPT_SNAPSHOTS).mkdir()
    (tmp_path / DONE_MARKER).touch()
    evaluator.main(tmp_path, cell(UNIFORM).scenario())
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.safetensors")] == [
        f"{KEPT_SNAPSHOTS}/d0/00001-round.safetensors"
    ]
