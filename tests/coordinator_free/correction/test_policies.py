"""Every policy is pure, deterministic and within its limits; the rule of each policy."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator_free.correction.action_model import relative_use
from coordinator_free.correction.policies import (
    EARLY_PART,
    POLICIES,
    SCHEDULES,
    decide,
    options,
    policy,
    schedule,
)
from coordinator_free.correction.policy_interface import STAY, Decision, GroupAction, Limits, Memory
from tests.support.diagnoses import GROUPS, LADDER, LIMITS, SHARES, group, view

NAMES = sorted(POLICIES)
BASE = LIMITS.base
sizes = st.floats(0, 10)


@st.composite
def views(draw):
    shares = [draw(st.floats(0, 1)) for _ in GROUPS]
    whole = sum(shares) or 1.0
    shown = {
        name: group(
            draw(sizes), draw(sizes), draw(sizes), share / whole, draw(st.floats(0, 5)), draw(st.floats(0, 2))
        )
        for name, share in zip(GROUPS, shares, strict=True)
    }
    trials = {(g, "more-steps"): draw(st.floats(-1, 1)) for g in GROUPS}
    return view(draw(st.integers(0, 99)), draw(st.integers(1, 20)), draw(st.integers(0, 9)), trials, **shown)


def several(name: str, shown, limits: Limits = LIMITS, times: int = 4) -> list[Decision]:
    made, memory = [], Memory()
    for i in range(times):
        made.append(decide(name, replace(shown, index=shown.index + i), limits, memory))
        memory = made[-1].memory
    return made


CONSTANT = ("max-steps", "early-steps", "gamma-1", "max-steps+gamma-1")


def test_every_row_of_the_table_is_there():
    table = "uniform proportional proportional-sync dominant local-steps retain-prox topology sync ls+prox"
    table += " random lookahead"
    assert sorted([*table.split(), *CONSTANT]) == sorted([*NAMES, *SCHEDULES])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(shown=views())
def test_a_policy_keeps_to_its_limits(name, shown):
    for made in several(name, shown):
        assert list(made.settings) == list(GROUPS)
        for action in made.settings.values():
            assert LIMITS.steps_min <= action.steps <= LIMITS.steps_max
            assert 0 <= action.prox <= LIMITS.prox_max
            assert LIMITS.gamma_min <= action.gamma <= 1
            assert 1 <= action.period <= LIMITS.period_max
            assert action.rung == LADDER.clipped(action.rung)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(shown=views())
def test_a_policy_decides_the_same_again(name, shown):
    assert several(name, shown) == several(name, shown)


@pytest.mark.parametrize("name", ["dominant", "lookahead", "random", "sync"])
@settings(max_examples=25)
@given(shown=views())
def test_no_more_bytes_than_uniform(name, shown):
    for made in several(name, shown):
        assert relative_use(made.settings, shown, LIMITS)[0] <= 1 + 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_decision_can_be_recorded_and_gives_its_reason(name):
    made = several(name, view(trials={("late", "more-steps"): 0.5}))[-1]
    record = json.loads(json.dumps(made.record()))
    assert record["reason"].startswith(f"{name}: ") and "\n" not in record["reason"]
    assert record["groups"]["late"]["steps"] == made.settings["late"].steps


@pytest.mark.parametrize("name", NAMES)
def test_a_decision_gives_the_edges_to_add_and_to_drop(name):
    made = decide(name, view(), LIMITS, Memory())
    for g, action in made.settings.items():
        edges = LADDER.at(0).edges | {*made.added_edges[g]}
        assert edges - {*made.dropped_edges[g]} == LADDER.at(action.rung).edges


def test_schedules_use_no_measurement():
    of = 18
    early = 5  # EARLY_PART = 4: rounded up
    made = {name: [rule(k, of, LIMITS) for k in range(of)] for name, rule in SCHEDULES.items()}
    most = replace(BASE, steps=LIMITS.steps_max)
    assert made["uniform"] == [BASE] * of and made["max-steps"] == [most] * of
    assert made["early-steps"] == [most] * early + [BASE] * (of - early)
    assert early == -(-of // EARLY_PART)


def test_a_name_is_a_policy_or_a_schedule() -> None:
    with pytest.raises(ValueError, match="name of a schedule"):
        policy("uniform")
    with pytest.raises(ValueError, match="name of a policy"):
        schedule("dominant")


def test_proportional_is_algorithm_1():
    limits = Limits(GroupAction(2), steps_min=1, steps_max=5, prox_max=1e-3, gamma_min=0.4)
    made = decide("proportional", view(), limits, Memory()).settings
    for name, p in zip(GROUPS, SHARES, strict=True):
        assert made[name].steps == round(1 + 4 * p)
        assert made[name].prox == pytest.approx(1e-3 * p)
        assert made[name].gamma == pytest.approx(0.4 + 0.6 * p)
    assert made["early"].rung <= made["mid"].rung <= made["late"].rung


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("local-steps", {"steps"}),
        ("retain-prox", {"prox"}),
        ("topology", {"rung"}),
        ("sync", {"period"}),
        ("ls+prox", {"steps", "prox"}),
    ],
)
def test_an_ablation_arm_turns_its_own_knobs_only(name, knobs):
    limits = replace(LIMITS, base=GroupAction(2))
    made = decide(name, view(), limits, Memory()).settings
    turned = {
        knob for a in made.values() for knob, v in a.record().items() if v != limits.base.record()[knob]
    }
    assert turned == knobs


def test_the_most_pressing_group_gets_the_densest_graph_and_is_exchanged_every_round():
    denser = decide("topology", view(), LIMITS, Memory()).settings
    assert [denser[g].rung for g in GROUPS] == [round(LADDER.top * p / 0.6) for p in SHARES]
    rare = decide("sync", view(), LIMITS, Memory()).settings
    assert [rare[g].period for g in GROUPS] == [6, 2, 1]


def test_random_depends_on_the_seed_and_the_diagnosis():
    drawn = {
        decide("random", view(index, seed=s), LIMITS, Memory()).reason for index in range(5) for s in range(5)
    }
    assert len(drawn) > 5


def test_lookahead_takes_the_trial_that_lowered_the_loss_most_per_cost():
    trials = {("early", "more-steps"): 0.5, ("late", "more-prox"): 0.45, STAY: 0.1}
    made = decide("lookahead", view(trials=trials), LIMITS, Memory())
    assert made.settings["late"].prox == LIMITS.prox_min and made.settings["early"] == BASE
    assert made.reason == "lookahead: trial 0.45 -> late prox 1e-3"


def test_lookahead_stays_where_no_trial_lowered_the_loss():
    trials = {("early", "more-steps"): -0.5, STAY: -0.1}
    for tried in (trials, {}):
        assert set(decide("lookahead", view(trials=tried), LIMITS, Memory()).settings.values()) == {BASE}


def test_the_options_are_staying_and_every_affordable_move():
    tried = {key: then for key, then, _ in options(view(), LIMITS, Memory())}
    assert set(tried[STAY].values()) == {BASE}
    assert ("late", "more-steps") in tried and ("late", "more-rung") not in tried  # it would cost more bytes
    assert all(relative_use(then, view(), LIMITS)[0] <= 1 for then in tried.values())


def test_a_policy_starts_from_the_present_settings():
    held = Memory(settings={**dict.fromkeys(GROUPS, BASE), "late": replace(BASE, steps=6)})
    made = decide("lookahead", view(trials={("late", "more-steps"): 1.0}), replace(LIMITS, steps_max=9), held)
    assert made.settings["late"].steps == 9


def test_a_plugin_adds_a_policy():
    @policy("early-only")
    def early_only(shown, limits, memory):
        made = {g: replace(limits.base, rung=99 if g == "early" else 0) for g in shown.groups}
        return Decision(made, "early first", memory)

    try:
        made = decide("early-only", view(), LIMITS, Memory())
        assert made.settings["early"].rung == LADDER.top and made.reason == "early-only: early first"
    finally:
        del POLICIES["early-only"]
