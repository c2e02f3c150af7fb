"""An arm compared with the oracle and `uniform` of its seed, verdicts, and tables after a join."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from emulation.experiments import aggregate, grid, paired, regime_check, tables
from emulation.experiments.arms import NONE, ORACLE, ORACLES, UNIFORM
from emulation.experiments.catalogue import EXPERIMENTS, SCALES, choose_arms
from emulation.experiments.grid import Cell
from emulation.experiments.request import Request
from emulation.experiments.run import run
from tests.support.experiment_measures import measured

SMOKE = SCALES["smoke"]
MEASURED = [
    measured(UNIFORM, 1.0, 0.5, 0.3),
    measured("dominant", 1.0, 0.2, 0.2),
    measured(ORACLE, 0.9, 0.2, 0.1),
]


def by_arm(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in rows}


def test_event_gap_is_the_loss_above_the_oracles_last() -> None:
    found = by_arm(paired.paired_rows(MEASURED, [NONE]))
    assert {arm: row["eg"] for arm, row in found.items()} == pytest.approx(
        {UNIFORM: 0.2, "dominant": 0.1, ORACLE: 0.0, NONE: 0.9}
    )
    assert found["dominant"]["eg_share"] == pytest.approx(0.1 / 0.9)
    assert found["dominant"]["ri_gap"] == pytest.approx(50.0)
    assert found["dominant"]["ri_loss"] == pytest.approx(100 / 3)
    assert found["dominant"]["worst_gap"] == pytest.approx(0.2)
    assert [point["k"] for point in paired.without_correction(MEASURED[0], NONE)["curve"]] == [0, 1, 2]


def test_no_correction_costs_nothing() -> None:
    found = by_arm(paired.paired_rows(MEASURED, [NONE]))[NONE]
    assert (found["bytes"], found["norm_comm"], found["recovery_rounds"]) == (0, 0.0, None)


def test_recovery_costs_are_shares_of_the_oracles_costs() -> None:
    arms = [measured(UNIFORM, 1.0, 0.5, 0.11), measured("dominant", 1.0, 0.12, 0.1), MEASURED[2]]
    found = by_arm(paired.paired_rows(arms))
    shares = {arm: (row["recovery_rounds"], row["recovery_share_bytes"]) for arm, row in found.items()}
    # 95 % of 0.9 is 0.855: a loss of 0.145 here.
    assert shares == {UNIFORM: (2, 1.0), "dominant": (1, 0.5), ORACLE: (2, 1.0)}


def test_recovery_is_judged_by_the_oracle_with_the_same_steps_and_optimiser() -> None:
    early = [measured("early-steps", 1.0, 0.12, 0.1), measured(UNIFORM, 1.0, 0.5, 0.3)]
    alone = by_arm(paired.paired_rows([*early, MEASURED[2]]))["early-steps"]
    assert alone["recovery_rounds"] is None and alone["recovery_share_steps"] is None
    own = {**measured("oracle-20", 0.9, 0.5, 0.12, 0.1), "arm": "oracle-20"}
    rows = paired.paired_rows([*early, MEASURED[2], own])
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
    medium = SCALES["medium"]
    rounds = {c.arm.name: c.rounds for c in grid.cells(recovery, recovery.arms, medium, [0])}
    assert rounds["oracle"] == rounds["oracle-max-steps"] == 160
    assert rounds["oracle-20"] == rounds["oracle-20-fisher"] == 80
    assert set(choose_arms(recovery, "fisher", SMOKE)) == {"fisher", UNIFORM, ORACLE, "oracle-20-fisher"}


def test_settings_of_one_seed_count_as_one_value() -> None:
    mine = [{"setting": a, "seed": s, "eg": 0.1 * s} for a in "ab" for s in (0, 1, 2)]
    other = [{"setting": a, "seed": s, "eg": 0.0} for a in "ab" for s in (0, 1, 2)]
    found = aggregate.paired_interval(mine, other, "eg")
    assert found is not None and found.n == 3 and found.mean == pytest.approx(0.1)


def test_a_cell_without_its_oracle_is_left_out() -> None:
    assert paired.paired_rows([measured(UNIFORM, 1.0), measured(ORACLE, 1.0, seed=1)], [NONE]) == []


def test_differences_are_paired_by_setting_and_seed() -> None:
    mine = [{"setting": "a", "seed": s, "eg": 0.1 * s} for s in (0, 1, 2)]
    other = [{"setting": "a", "seed": s, "eg": 1.0 + 0.1 * s} for s in (2, 1)]
    found = aggregate.paired_differences(mine, other, "eg")
    assert [seed for seed, _ in found] == [1, 2]
    assert [value for _, value in found] == pytest.approx([-1.0, -1.0])


def test_the_p_of_a_table_is_adjusted_over_all_of_its_settings() -> None:
    """Two settings with two arms each are four claims."""
    rows = [
        {**measured(arm, 1.0, loss + 0.01 * seed * (arm == "sync"), seed=seed), "setting": setting}
        for setting in ("a", "b")
        for seed in range(4)
        for arm, loss in ((ORACLE, 0.1), (UNIFORM, 0.5), ("sync", 0.49))
    ]
    both = aggregate.aggregate(paired.paired_rows(rows))
    one = aggregate.aggregate(paired.paired_rows([row for row in rows if row["setting"] == "a"]))
    p = [by_arm(found)["sync"]["eg_minus_uniform"]["p"] for found in (one, both)]
    assert p[1] == pytest.approx(2 * p[0]) and 0 < p[1] < 1


def test_an_arm_of_n_max_steps_is_judged_by_the_oracle_of_as_many() -> None:
    names = ("max-steps", "max-steps+gamma-1", "early-max-steps")
    assert {paired.oracle_of(name) for name in names} == {"oracle-max-steps"}
    assert paired.oracle_of("dominant") == paired.oracle_of("gamma-1") == ORACLE


def test_verdicts_compare_dominant_with_uniform() -> None:
    def world(seed: int) -> list[dict[str, Any]]:
        losses = {ORACLE: 0.1, UNIFORM: 0.5, "sync": 0.4, "topology": 0.3, "dominant": 0.32 + 0.001 * seed}
        return [measured(arm, 1.0, loss, seed=seed) for arm, loss in losses.items()]

    found = aggregate.verdicts(paired.paired_rows([m for seed in range(3) for m in world(seed)]))
    (against,) = found  # no arm reached the oracle
    assert against["what"] == "dominant - uniform"
    assert "-0.179 \\[-0.181, -0.177]; p < 0.001, adjusted" in tables.verdict_line(against)


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


def test_after_a_join_the_tables_are_about_the_newcomer(tmp_path: Path) -> None:
    joins = EXPERIMENTS["joins"]

    def made(one: Cell, folder: Path, console: Console) -> dict[str, Any]:
        return measured(one.arm.name, 1.0, 0.5, seed=one.seed, setting=one.setting.name)

    console = Console(record=True, width=120, quiet=False, file=(tmp_path / "said").open("w"))
    run(joins, Request(SMOKE, (UNIFORM, ORACLE), (0,), tmp_path / "out"), console, made)
    said = console.export_text()
    console.file.close()
    assert said.count("the newcomer's facts") == len(joins.settings)
    assert "forgetting" not in said and "re-emergence" not in said and "the leaver's facts" not in said
