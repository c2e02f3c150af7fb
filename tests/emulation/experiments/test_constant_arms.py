"""Policies against constant arms at equal cost, and the diagnoses of all rounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy.stats import ttest_1samp

from emulation.experiments import diagnoses
from emulation.experiments.constant_arms import (
    POOLED,
    SAME,
    against_constants,
    best_constant,
    best_of_each,
    constants_table,
    read_rows,
)
from peers.errors import InputError


def row(arm: str, seed: int, eg: float, steps: float = 40.0, sent: float = 1e6) -> dict[str, Any]:
    costs = {"steps": steps, "seconds": steps / 20, "cpu_s": steps / 10, "bytes": sent}
    return {"setting": "ring", "arm": arm, "seed": seed, "eg": eg, **costs}


def rows(dominant: list[float], steps: float, sent: float = 1e6) -> list[dict[str, Any]]:
    found = [row("dominant", seed, eg, steps, sent) for seed, eg in enumerate(dominant)]
    for seed in range(len(dominant)):
        found += [row("uniform", seed, 0.5 + 0.01 * seed), row("gamma-1", seed, 0.2 + 0.01 * seed)]
        found.append(row("max-steps+gamma-1", seed, 0.1 + 0.01 * seed, 80))
    return found


def of_dominant(found: list[dict[str, Any]]) -> dict[str, Any]:
    (only,) = against_constants(found)
    return only


def test_a_policy_with_the_steps_of_uniform_competes_with_constants_of_as_many_steps():
    found = of_dominant(rows([0.15, 0.16, 0.17], 40))
    assert found["chosen"] == pytest.approx({"gamma-1": 2 - SAME, "max-steps+gamma-1": SAME - 1})
    assert found["eg_minus_constant"]["mean"] == pytest.approx(-0.05 + 0.1 * (SAME - 1))
    assert found["success"]
    assert found["steps"] == pytest.approx(1 / SAME) and found["bytes"] == 1


def test_steps_between_two_constants_are_compared_with_their_mixture():
    found = of_dominant(rows([0.15, 0.16, 0.17], 60 / SAME))
    assert found["eg_minus_constant"]["mean"] == pytest.approx(0.0, abs=1e-9)
    assert not found["success"]
    assert found["steps"] == pytest.approx(1 / SAME)


def test_the_constant_arm_is_chosen_on_the_other_seeds():
    """On each seed another arm is best, and the policy is as good as the best of each seed."""
    found = [row("dominant", seed, 0.0) for seed in range(2)]
    found += [row("uniform", 0, 0.0), row("uniform", 1, 1.0), row("gamma-1", 0, 1.0), row("gamma-1", 1, 0.0)]
    made = of_dominant(found)
    assert made["eg_minus_constant"]["mean"] == -1.0
    assert made["chosen"] == pytest.approx({"gamma-1": 0.5, "uniform": 0.5})


def test_a_constant_arm_that_sends_more_is_a_choice_for_a_share_of_the_rounds():
    """Its bytes are the limit here: 2 % of the rounds may cost twice the bytes."""
    found = [row("uniform", seed, 0.5) for seed in range(2)]
    found += [row("gamma-1", seed, 0.1, sent=2e6) for seed in range(2)]
    found += [row("dominant", seed, 0.3) for seed in range(2)]
    made = of_dominant(found)
    assert made["chosen"] == pytest.approx({"uniform": 2 - SAME, "gamma-1": SAME - 1})
    assert made["bytes"] == pytest.approx(1 / SAME)


def test_steps_and_bytes_may_both_limit_the_shares():
    """Of three arms: none may exceed 1.02 times the policy's steps or bytes."""
    seen = {
        "uniform": [row("uniform", 0, 0.5)],
        "max-steps": [row("max-steps", 0, 0.3, 80)],
        "gamma-1": [row("gamma-1", 0, 0.1, sent=2e6)],
    }
    shares = best_constant(seen, [row("dominant", 0, 0.4, 60 / SAME, 1.5e6 / SAME)])
    assert shares == pytest.approx({"max-steps": 0.5, "gamma-1": 0.5})


def test_a_constant_arm_that_sends_one_per_cent_more_is_a_choice():
    """All constant arms send a little more where a policy sends less for its measurements."""
    found = [row("uniform", seed, 0.5, sent=1.01e6) for seed in range(2)]
    found += [row("max-steps", seed, 0.1, 80, sent=1.01e6) for seed in range(2)]
    found += [row("dominant", seed, 0.3, 80 / SAME) for seed in range(2)]
    made = of_dominant(found)
    assert made["chosen"] == {"max-steps": pytest.approx(1)}
    assert not made["success"]


def test_a_policy_that_sends_less_than_all_does_not_exclude_an_arm_that_sends_a_little_more():
    """The policy sends 10 % less than all constant arms, at the steps of `max-steps`. That arm sends 0.04 %
    more than the cheapest one, and it is the choice."""
    seen = {
        "uniform": [row("uniform", 0, 0.5)],
        "max-steps": [row("max-steps", 0, 0.1, 80, sent=1.0004e6)],
    }
    assert best_constant(seen, [row("dominant", 0, 0.3, 80, sent=0.9e6)]) == pytest.approx({"max-steps": 1})


def test_the_p_of_all_lines_is_adjusted_together():
    """The same differences with one, two and four policies: p is multiplied by 1, 2 and 4."""
    gaps = [0.45, 0.42, 0.40, 0.46]  # of the constant arm: 0.5
    p = ttest_1samp([gap - 0.5 for gap in gaps], 0).pvalue
    for policies in (("dominant",), ("dominant", "topology"), ("dominant", "topology", "sync", "random")):
        found = [row("uniform", seed, 0.5) for seed in range(4)]
        found += [row(name, seed, gap) for name in policies for seed, gap in enumerate(gaps)]
        made = against_constants(found)
        expected = [len(policies) * p] * len(policies)
        assert [one["eg_minus_constant"]["p"] for one in made] == pytest.approx(expected)
        assert [one["success"] for one in made] == [len(policies) * p < 0.05] * len(policies)


def test_settings_are_pooled_by_seed():
    """The two settings differ by 1, the seeds by 0.02: only the seeds enter the interval."""
    found = []
    for seed in range(3):
        gain = 0.1 + 0.02 * seed
        found += [row("uniform", seed, 0.5), row("dominant", seed, 0.5 - gain)]
        found += [{**row("uniform", seed, 2.0), "setting": "full"}]
        found += [{**row("dominant", seed, 1.0 - gain), "setting": "full"}]
    made = {one["setting"]: one for one in against_constants(found)}
    assert set(made) == {"ring", "full", POOLED}
    pooled = made[POOLED]["eg_minus_constant"]
    assert pooled["mean"] == pytest.approx(-0.62)
    assert pooled["high"] - pooled["low"] == pytest.approx(2 * 4.303 * 0.02 / 3**0.5, rel=1e-3)
    assert made[POOLED]["success"]


def test_a_policy_that_costs_less_than_all_is_compared_at_the_cost_of_the_cheapest():
    seen = {"uniform": [row("uniform", 0, 0.5)], "max-steps": [row("max-steps", 0, 0.1, 80)]}
    shares = best_constant(seen, [row("sync", 0, 0.4, 20)])
    assert shares == pytest.approx({"uniform": 2 - SAME, "max-steps": SAME - 1})


def test_a_policy_with_fewer_steps_than_all_is_compared_at_the_fewest_steps():
    seen = {
        name: [row(name, 0, eg, sent=sent)]
        for name, eg, sent in (("uniform", 0.5, 1e6), ("gamma-1", 0.1, 1.1e6))
    }
    assert best_constant(seen, [row("dominant", 0, 0.2, 38, 1.1e6)]) == pytest.approx({"gamma-1": 1.0})


def test_the_table_can_be_printed_from_a_published_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    found = rows([0.15, 0.16, 0.17], 40)
    lines = [",".join(found[0]), *(",".join(map(str, one.values())) for one in found)]
    file.write_text("\n".join(lines), encoding="utf-8")
    assert against_constants(read_rows(file)) == against_constants(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("setting,arm,seed,eg,steps,seconds,cpu_s\n", "no column bytes"),
        ("setting,arm,seed,eg,steps,seconds,cpu_s,bytes\nring,uniform,0,x,1,1,1,1\n", "could not convert"),
    ],
)
def test_a_file_without_the_rows_of_an_experiment_is_refused(
    tmp_path: Path, text: str | None, said: str
) -> None:
    file = tmp_path / "rows.csv"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_rows(file)


def test_one_seed_or_no_constant_arm_gives_no_comparison():
    assert against_constants(rows([0.1], 40)) == []
    assert against_constants([row("dominant", 0, 0.1), row("dominant", 1, 0.1)]) == []
    assert against_constants([row("uniform", 0, 0.1), row("uniform", 1, 0.1)]) == []


def text(table: Any) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_the_tables_show_costs_and_the_verdict():
    shown = text(constants_table(against_constants(rows([0.15, 0.16, 0.17], 40))))
    assert " * " in shown and "98% gamma-1, 2% max-steps+gamma-1" in shown
    entry = {
        "setting": "ring",
        "eg": {"mean": 0.2, "low": 0.1, "high": 0.3},
        "steps": {"mean": 40},
        "seconds": {"mean": 2.0},
        "bytes": {"mean": 3e6},
    }
    entries = [{**entry, "arm": arm} for arm in ("uniform", "gamma-1", "topology", "dominant")]
    evidence = [{"setting": "ring", "shares": {"R_loc": 0.2, "R_con": 0.7, "R_het": 0.1}}]
    shown = text(best_of_each(entries, evidence))
    assert "20/70/10" in shown
    assert "0.200 [0.100, 0.300]" in shown


def measured(seed: int, *shares: tuple[float, float, float]) -> dict[str, Any]:
    decisions = [
        {
            "k": 5 * (n + 1),
            "measured_k": 5 * (n + 1) - 3,
            "reason": "dominant: stay",
            "groups": {},
            "residuals": {"all": dict(zip(("local", "consensus", "heterogeneity"), share, strict=True))},
        }
        for n, share in enumerate(shares)
    ]
    return {"setting": "ring", "arm": "dominant", "seed": seed, "decisions": decisions}


def test_diagnoses_of_all_rounds_are_reported(tmp_path: Path):
    seen = [measured(0, (1.0, 3.0, 0.0), (1.0, 0.0, 1.0)), measured(1, (1.0, 1.0, 0.0))]
    found = diagnoses.shares_by_round(seen)
    assert [one["k"] for one in found] == [5, 10]
    assert found[0]["shares"] == {"R_loc": 0.375, "R_con": 0.625, "R_het": 0.0}
    assert found[0]["total"] == 3.0
    assert found[0]["largest"] == {"R_loc": 1, "R_con": 1, "R_het": 0}
    assert found[0]["gap"] is None and found[0]["capped"] == 0
    assert "62 %" in text(diagnoses.diagnoses_table(found, "dominant"))
    diagnoses.write_diagnoses(seen, tmp_path / "rounds.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [(line["seed"], line["k"]) for line in lines] == [(0, 5), (0, 10), (1, 5)]
    diagnoses.publish_diagnoses(seen, tmp_path / "diagnoses.csv", "dominant")
    first = (tmp_path / "diagnoses.csv").read_text().splitlines()[1]
    assert first == "ring,dominant,0,,5,2,all,1,3,0"


def test_the_sum_of_the_residuals_stands_beside_the_gap_that_it_estimates():
    """The diagnosis at k = 2 is used at k = 5. The loss at k = 2 is 0.7, that of the oracle is 0.4."""
    losses = [{"k": k, "loss": loss} for k, loss in ((0, 2.0), (2, 0.7), (5, 0.6), (10, 0.5))]
    oracle = {
        "setting": "ring",
        "arm": "oracle",
        "seed": 0,
        "decisions": [],
        "curve": [{"k": 10, "loss": 0.4}],
    }
    seen = {**measured(0, (1.0, 3.0, 0.0)), "curve": losses}
    seen["decisions"][0]["residuals"]["all"]["rate"] = 1.0
    (found,) = diagnoses.shares_by_round([seen, oracle])
    assert found["total"] == 4.0
    assert found["gap"] == pytest.approx(0.3) and found["capped"] == 1
    assert "0.300" in text(diagnoses.diagnoses_table([found], "dominant"))
