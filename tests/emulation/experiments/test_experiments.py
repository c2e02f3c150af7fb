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
from emulation.experiments import aggregate, grid, metrics, paired, regime_check, runner, tables
from emulation.experiments.arms import ARMS, BEFORE, NONE, ORACLE, ORACLES, UNIFORM
from emulation.experiments.catalogue import EXPERIMENTS, SCALES, choose_arms
from emulation.experiments.evaluation import write_mean
from emulation.experiments.grid import Cell
from emulation.experiments.run import Request, run
from emulation.scenario.loading import dump, load
from emulation.scenario.preflight import check_against_model
from peers.errors import InputError
from peers.storage.snapshots import write_snapshot

ABLATION, REGIMES = EXPERIMENTS["ablation"], EXPERIMENTS["regimes"]
SMOKE = SCALES["smoke"]
QUIET = Console(quiet=True)


def cell(arm: str, seed: int = 0, scale: str = "smoke") -> Cell:
    return Cell(ABLATION.settings[0], ARMS[arm], seed, SCALES[scale])


def point(k: int, loss: float, **other: float) -> dict[str, float]:
    scores = {"retain": 1 - loss, "test": 0.0, "forget": 0.0, "fresh": 0.0, "auc": 0.5, "tpr": 0.0}
    return {"k": k, "loss": loss, **scores, "bytes": 100.0 * k, "steps": k, "seconds": k, "cpu_s": k, **other}


def measured(arm: str, *losses: float, seed: int = 0, setting: str = "paper") -> dict[str, Any]:
    """The measures of a cell, with one point for each loss, at k = 0, 1, ..."""
    return {
        "setting": setting,
        "arm": arm,
        "seed": seed,
        "prefix_sha256": None if arm == ORACLE else "same",
        "curve": [point(k, loss) for k, loss in enumerate(losses)],
        "worst_loss": losses[-1] + 0.1,
        "decisions": [],
        "exits": {},
    }


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
        for acts_after in ("policy", "refit", "fisher", "interference", "ewc", "steps_max"):
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


# -- comparison ------------------------------------------------------------------------------------------
MEASURED = [
    measured(UNIFORM, 1.0, 0.5, 0.3),
    measured("dominant", 1.0, 0.2, 0.2),
    measured(ORACLE, 0.9, 0.2, 0.1),
]


def by_arm(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in rows}


def test_event_gap_is_the_loss_above_the_oracles_last() -> None:
    found = by_arm(paired.paired_rows(MEASURED, with_none=True))
    assert {arm: row["eg"] for arm, row in found.items()} == pytest.approx(
        {UNIFORM: 0.2, "dominant": 0.1, ORACLE: 0.0, NONE: 0.9}
    )
    assert found["dominant"]["eg_share"] == pytest.approx(0.1 / 0.9)
    assert found["dominant"]["ri_gap"] == pytest.approx(50.0)
    assert found["dominant"]["ri_loss"] == pytest.approx(100 / 3)
    assert found["dominant"]["worst_gap"] == pytest.approx(0.2)
    assert [point["k"] for point in paired.without_correction(MEASURED[0])["curve"]] == [0, 1, 2]


def test_no_correction_costs_nothing() -> None:
    found = by_arm(paired.paired_rows(MEASURED, with_none=True))[NONE]
    assert (found["bytes"], found["norm_comm"], found["recovery_rounds"]) == (0, 0.0, None)


def test_recovery_costs_are_shares_of_the_oracles_costs() -> None:
    arms = [measured(UNIFORM, 1.0, 0.5, 0.11), measured("dominant", 1.0, 0.12, 0.1), MEASURED[2]]
    found = by_arm(paired.paired_rows(arms, with_none=False))
    shares = {arm: (row["recovery_rounds"], row["recovery_share_bytes"]) for arm, row in found.items()}
    # 95 % of 0.9 is 0.855: a loss of 0.145 here.
    assert shares == {UNIFORM: (2, 1.0), "dominant": (1, 0.5), ORACLE: (2, 1.0)}


def test_recovery_is_judged_by_the_oracle_with_the_same_steps_and_optimiser() -> None:
    early = [measured("early-steps", 1.0, 0.12, 0.1), measured(UNIFORM, 1.0, 0.5, 0.3)]
    alone = by_arm(paired.paired_rows([*early, MEASURED[2]], with_none=False))["early-steps"]
    assert alone["recovery_rounds"] is None and alone["recovery_share_steps"] is None
    own = {**measured("oracle-20", 0.9, 0.5, 0.12, 0.1), "arm": "oracle-20"}
    rows = paired.paired_rows([*early, MEASURED[2], own], with_none=False)
    assert by_arm(rows)["early-steps"]["recovery_share_steps"] == pytest.approx(1 / 2)
    verdict = next(v for v in aggregate.verdicts(rows) if v["what"] == "recovery of early-steps")
    assert not verdict["holds"]  # 50 % of the steps
    assert "rounds 50 %, steps 50 % of its oracle's; goal of 25 % of both" in tables.verdict_line(verdict)


def test_oracles_train_as_the_arms_that_they_judge() -> None:
    recovery = EXPERIMENTS["recovery"]
    scenarios = {c.arm.name: c.scenario() for c in grid.cells(recovery, recovery.arms, SMOKE, [0])}
    steps = {name: scenarios[name].round.local_steps for name in ORACLES}
    assert steps == {"oracle": 5, "oracle-max-steps": 10, "oracle-20": 20, "oracle-20-fisher": 20}
    assert scenarios["oracle-20-fisher"].train.fisher_every == 10
    assert scenarios["early-steps"].correction.steps_max == 20
    for name in ORACLES:
        assert scenarios[name].event == () and scenarios[name].devices.count == SMOKE.devices - 1
    assert set(choose_arms(recovery, "fisher", SMOKE)) == {"fisher", UNIFORM, ORACLE, "oracle-20-fisher"}


def test_settings_of_one_seed_count_as_one_value() -> None:
    mine = [{"setting": a, "seed": s, "eg": 0.1 * s} for a in "ab" for s in (0, 1, 2)]
    other = [{"setting": a, "seed": s, "eg": 0.0} for a in "ab" for s in (0, 1, 2)]
    found = aggregate.paired_interval(mine, other, "eg")
    assert found is not None and found.n == 3 and found.mean == pytest.approx(0.1)


def test_a_cell_without_its_oracle_is_left_out() -> None:
    assert paired.paired_rows([measured(UNIFORM, 1.0), measured(ORACLE, 1.0, seed=1)], with_none=True) == []


def test_differences_are_paired_by_setting_and_seed() -> None:
    mine = [{"setting": "a", "seed": s, "eg": 0.1 * s} for s in (0, 1, 2)]
    other = [{"setting": "a", "seed": s, "eg": 1.0 + 0.1 * s} for s in (2, 1)]
    found = aggregate.paired_differences(mine, other, "eg")
    assert [seed for seed, _ in found] == [1, 2]
    assert [value for _, value in found] == pytest.approx([-1.0, -1.0])


def test_verdicts_name_the_best_single_action_and_compare_dominant() -> None:
    def world(seed: int) -> list[dict[str, Any]]:
        losses = {ORACLE: 0.1, UNIFORM: 0.5, "sync": 0.4, "topology": 0.3, "dominant": 0.32 + 0.001 * seed}
        return [measured(arm, 1.0, loss, seed=seed) for arm, loss in losses.items()]

    found = aggregate.verdicts(
        paired.paired_rows([m for seed in range(3) for m in world(seed)], with_none=False)
    )
    single, dominant, against, *recoveries = found
    assert [v["what"] for v in recoveries] == []  # no arm reached the oracle
    assert single["what"] == "best single action topology - runner-up sync"
    assert single["eg"]["high"] == pytest.approx(-0.1)
    assert (dominant["what"], dominant["allowed"], dominant["holds"]) == (
        "dominant - best other policy topology",
        pytest.approx(0.01),
        False,
    )
    assert against["what"] == "dominant - uniform"
    assert "-0.100 \\[-0.100, -0.100], which excludes 0; p < 0.001, adjusted" in tables.verdict_line(single)


def decision(reason: str, local: float, consensus: float, heterogeneity: float) -> dict[str, Any]:
    half = {"local": local / 2, "consensus": consensus / 2, "heterogeneity": heterogeneity / 2, "S": 9.0}
    return {"k": 1, "reason": reason, "groups": {}, "residuals": {"early": half, "late": half}}


def test_a_regime_is_described_by_the_first_diagnosis_and_the_choices() -> None:
    sync, stay = (
        "dominant: late, R_loc 1 of 2 -> sync 2, early steps 1",
        "dominant: late, R_loc 1 of 2 -> stay",
    )
    first, second = decision(sync, 1.0, 2.0, 1.0), decision(stay, 5.0, 0.0, 0.0)
    told = [{**measured("dominant", 1.0), "decisions": [first, second, second]}, measured(UNIFORM, 1.0)]
    found = regime_check.regime_evidence(told)
    assert [e["choices"] for e in found] == [{"stay": 2, "sync": 1}]
    assert found[0]["shares"] == pytest.approx({"R_loc": 0.25, "R_con": 0.5, "R_het": 0.25})
    assert tables.regime_line(found[0]) == (
        "paper: at the first diagnosis R_loc 25 %, R_con 50 %, R_het 25 %; "
        "dominant chose stay 2, sync 1 (decisions)"
    )


def test_without_a_diagnosis_a_regime_has_no_evidence() -> None:
    assert regime_check.regime_evidence([measured(UNIFORM, 1.0), measured(ORACLE, 1.0)]) == []


# -- the whole -------------------------------------------------------------------------------------------
def test_an_experiment_writes_rows_results_and_a_picture(tmp_path: Path) -> None:
    arms = ("dominant", UNIFORM, NONE, ORACLE)
    console = Console(record=True, width=80, file=(tmp_path / "said").open("w"))
    run(Request(ABLATION, SCALES["small"], arms, (0, 1, 2), tmp_path), console, Maker())
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
