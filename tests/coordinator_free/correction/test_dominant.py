"""The policy `dominant` in constructed regimes: its choices, its hysteresis and its corrections."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from coordinator_free.correction.action_model import relative_use
from coordinator_free.correction.dominant import (
    DWELL,
    LEARNING_RATE,
    MAX_CORRECTION,
    MIN_CORRECTION,
    NOISE_FLOOR,
    dominant,
)
from coordinator_free.correction.policies import decide
from coordinator_free.correction.policy_interface import GroupAction, Memory
from tests.support.diagnoses import GROUPS, LIMITS, group, view

BASE = LIMITS.base
SMALL = 1e-4
ROOMY = replace(LIMITS, bytes_max=3.0)


def calm(**changed):
    """A group with small residuals."""
    return group(**{"local": SMALL, "consensus": SMALL, "heterogeneity": SMALL, **changed})


def regime(index=0, **late):
    return view(index=index, early=calm(), mid=calm(), late=calm(**late))


# -- which action --------------------------------------------------------------------------------------------
def test_where_descent_is_far_from_done_it_takes_more_steps():
    made = dominant(regime(local=1.0), ROOMY, Memory())
    assert made.settings["late"].steps == 13  # three notches at once
    assert made.reason.startswith("late, R_loc 1 of 1 -> steps 13")


def test_where_copies_differ_it_adds_edges():
    made = dominant(regime(consensus=1.0, mu=0.001), ROOMY, Memory())
    assert made.settings["late"].rung > 0 or made.settings["late"].steps < BASE.steps


def test_where_copies_differ_and_steps_are_few_it_adds_edges():
    limits = replace(ROOMY, base=GroupAction(1))
    made = dominant(regime(consensus=1.0), limits, Memory())
    assert made.settings["late"].rung == view().ladder.top
    assert made.reason.startswith("late, R_con 1 of 1 -> graph +3")


def test_where_mixing_is_weak_it_is_made_stronger_which_costs_no_byte():
    limits = replace(LIMITS, base=GroupAction(1, gamma=0.4))
    made = dominant(regime(consensus=1.0), limits, Memory())
    assert made.settings["late"].gamma == 1.0
    assert relative_use(made.settings, view(), limits)[0] <= 1 + 1e-9
    assert "gamma 1" in made.reason


def test_with_isolated_blocks_stronger_mixing_is_chosen_for_any_gain():
    weak = replace(LIMITS, base=GroupAction(4, gamma=0.4), steps_max=4)
    shown = {g: group(local=1.0, mu=0.1) for g in GROUPS}
    made = dominant(replace(view(**shown), isolated=True), weak, Memory())
    assert {action.gamma for action in made.settings.values()} == {1.0}
    assert {action.steps for action in made.settings.values()} == {4}


def test_a_knob_without_gain_is_not_changed():
    strong = replace(LIMITS, base=GroupAction(4, gamma=1 - 1e-9), steps_max=4)
    shown = {g: group(local=1.0, mu=0.1) for g in GROUPS}
    made = dominant(replace(view(**shown), isolated=True), strong, Memory())
    assert {action.gamma for action in made.settings.values()} == {1 - 1e-9}


def test_an_edge_beyond_the_budget_is_paid_by_a_group_that_can_wait():
    limits = replace(LIMITS, base=GroupAction(1))
    made = dominant(regime(consensus=1.0), limits, Memory())
    assert made.settings["late"].rung >= 1
    assert max(made.settings[g].period for g in ("early", "mid")) > 1
    assert relative_use(made.settings, view(), limits)[0] <= 1 + 1e-9
    assert "late graph" in made.reason or "-> graph" in made.reason


def test_where_devices_pull_apart_it_damps():
    made = dominant(regime(heterogeneity=1.0, eta=2.0, mu=1e-3), replace(ROOMY, prox_min=0.1), Memory())
    assert made.settings["late"].prox > 0
    assert made.reason.startswith("late, R_het 1 of 1 -> prox 3.2")


def test_it_acts_on_the_group_that_needs_it():
    shown = view(early=calm(local=1.0), mid=calm(), late=calm())
    made = dominant(shown, ROOMY, Memory())
    assert made.settings["early"].steps > made.settings["late"].steps


def test_it_stays_where_no_residual_is_left():
    shown = view(**{g: calm(local=0.0, consensus=0.0, heterogeneity=0.0) for g in GROUPS})
    made = decide("dominant", shown, LIMITS, Memory())
    assert set(made.settings.values()) == {BASE}
    assert made.reason == "dominant: early, R_loc 0 of 0 -> stay"


# -- hysteresis ----------------------------------------------------------------------------------------------
def test_a_small_advantage_is_not_acted_on():
    """Descent is so slow that two steps more lower what is left by less than MARGIN."""
    slow = view(**{g: group(local=1.0, consensus=0.0, heterogeneity=0.0, mu=1e-4) for g in GROUPS})
    assert dominant(slow, LIMITS, Memory()).settings["late"].steps <= BASE.steps
    quick = view(**{g: group(local=1.0, consensus=0.0, heterogeneity=0.0, mu=5e-2) for g in GROUPS})
    assert max(a.steps for a in dominant(quick, LIMITS, Memory()).settings.values()) > BASE.steps


def test_sustained_heterogeneity_does_not_stop_local_steps():
    """Little contracts: of R_het, a sum over all rounds, next to nothing comes until the next diagnosis."""
    shown = view(**{g: group(local=5.0, consensus=0.3, heterogeneity=5.0, mu=1e-3) for g in GROUPS})
    made = dominant(shown, replace(LIMITS, steps_min=1), Memory())
    assert min(action.steps for action in made.settings.values()) >= BASE.steps


def test_a_move_is_not_undone_at_once():
    up = dominant(regime(local=1.0), ROOMY, Memory())
    memory = replace(up.memory, settings=up.settings, expected={})
    steps = [
        dominant(regime(index, heterogeneity=9.0, mu=1e-6), ROOMY, memory).settings["late"].steps
        for index in range(1, DWELL + 2)
    ]
    assert min(steps[:DWELL]) >= up.settings["late"].steps > steps[DWELL]


def test_it_settles_in_a_world_that_behaves_as_predicted():
    """What heterogeneity sustains follows n and lambda, what is local stays as large as it is."""
    memory, made, chosen = Memory(), None, []
    for index in range(20):
        late = made.settings["late"] if made else BASE
        het = 0.5 * (late.steps / 4) * (1 + 0.5 * late.prox) ** (-2 * late.steps)
        seen = calm(local=0.2, heterogeneity=het, eta=0.5, mu=1e-2)
        made = decide(
            "dominant", replace(regime(index), groups={**regime().groups, "late": seen}), LIMITS, memory
        )
        memory = made.memory
        chosen.append(made.settings["late"])
    assert chosen[-1] == chosen[-4]


# -- what it learns ------------------------------------------------------------------------------------------
def learn(
    label: str, seen: float, effect: float = 0.5, times: int = 1, trend: float = 1.0
) -> dict[str, float]:
    """Corrections after `times` diagnoses in which late did `label`, predicted to multiply what is left by
    `effect`, and it was multiplied by `seen`; the others stayed, and everything by `trend` beside."""
    shown, memory = view(late=group(1.0, 0.0, 0.0), early=group(1.0, 0.0, 0.0)), Memory()
    for _ in range(times):
        stay = 1.0 / seen / trend
        expected = {"late": (label, stay, stay * effect), "early": ("stay", 1.0 / trend, 1.0 / trend)}
        memory = dominant(shown, LIMITS, replace(memory, expected=expected)).memory
    return dict(memory.corrections)


def test_an_effect_as_predicted_keeps_its_correction():
    assert learn("more-prox", 0.5) == {"more-prox": pytest.approx(1)}


def test_a_larger_or_smaller_effect_than_predicted_changes_its_correction():
    effect = math.log(0.5)
    step = LEARNING_RATE * effect**2 / (effect**2 + NOISE_FLOOR**2)
    assert learn("more-prox", 0.25)["more-prox"] == pytest.approx(1 + step)
    assert learn("more-prox", 1.0)["more-prox"] == pytest.approx(1 - step)


def test_the_correction_approaches_observed_over_predicted_effect():
    assert learn("more-prox", 0.5**0.3, times=30)["more-prox"] == pytest.approx(0.3, rel=1e-3)
    assert learn("less-period", 2.0**0.3, effect=2.0, times=30)["less-period"] == pytest.approx(0.3, rel=1e-3)


def test_a_trend_common_to_all_groups_changes_no_correction():
    assert learn("more-prox", 0.5, trend=1.7)["more-prox"] == pytest.approx(1)


def test_a_small_predicted_effect_hardly_changes_the_correction():
    assert learn("more-prox", 0.5, effect=0.999)["more-prox"] == pytest.approx(1, abs=0.05)


def test_corrections_are_bounded():
    assert learn("more-prox", 50.0, times=9)["more-prox"] == MIN_CORRECTION
    assert MAX_CORRECTION - 0.1 < learn("more-prox", 1e-9, times=9)["more-prox"] <= MAX_CORRECTION


def test_a_surprise_next_to_a_small_prediction_bans_no_action():
    assert learn("more-prox", 2.5, effect=0.95)["more-prox"] > 0.5


def test_an_action_that_kept_failing_is_no_longer_chosen():
    shown = regime(heterogeneity=1.0, eta=2.0, mu=1e-3)
    limits = replace(ROOMY, prox_min=0.1)
    failed = Memory(failed=frozenset({"more-prox"}))
    assert dominant(shown, limits, Memory()).settings["late"].prox > 0
    assert dominant(shown, limits, failed).settings["late"].prox == 0


def after_a_move(left: float) -> tuple[Memory, dict[str, float]]:
    """The memory after a decision to exchange `late` less often, and the error of each group since."""
    held = {**dict.fromkeys(GROUPS, BASE), "late": replace(BASE, period=4)}
    expected = {"early": ("stay", 1.0, 1.0), "mid": ("stay", 1.0, 1.0), "late": ("more-period", 1.0, 1.0)}
    return Memory(settings=held, expected=expected), dict.fromkeys(GROUPS, left)


def test_a_failed_move_is_undone_and_not_repeated():
    """Also where no effect was predicted, of which no correction could be learnt."""
    memory, left = after_a_move(1.3)
    shown = view(**{g: group(local=part, consensus=0.0, heterogeneity=0.0) for g, part in left.items()})
    made = dominant(shown, LIMITS, memory)
    assert set(made.settings.values()) == {BASE}
    assert made.reason.endswith("-> base: more-period failed")
    calm_again = view(index=1, **{g: group(local=1e-9, consensus=1e-9, heterogeneity=1e-9) for g in GROUPS})
    later = dominant(calm_again, LIMITS, replace(made.memory, settings=made.settings, expected={}))
    assert {action.period for action in later.settings.values()} == {1}


def test_with_isolated_blocks_a_change_of_mixing_is_not_assessed():
    memory, left = after_a_move(1.3)
    shown = {g: group(local=part, consensus=0.0, heterogeneity=0.0) for g, part in left.items()}
    made = dominant(replace(view(**shown), isolated=True), LIMITS, memory)
    assert not made.memory.failed and made.memory.corrections == {}


def test_a_move_that_did_not_fail_is_kept():
    memory, left = after_a_move(1.1)
    shown = view(**{g: group(local=part, consensus=0.0, heterogeneity=0.0) for g, part in left.items()})
    assert dominant(shown, LIMITS, memory).settings["late"].period == 4


def test_a_new_event_keeps_the_corrections_only():
    made = decide("dominant", regime(local=1.0), ROOMY, Memory(corrections={"more-steps": 0.9}))
    assert made.memory.expected["late"][0] == "more-steps" and made.memory.last
    assert made.memory.after_event() == Memory(corrections={"more-steps": 0.9})


def test_both_predictions_of_every_group_are_kept():
    made = decide("dominant", regime(local=1.0), ROOMY, Memory())
    assert list(made.memory.expected) == list(GROUPS)
    label, stay, then = made.memory.expected["late"]
    assert label == "more-steps" and then < stay
    assert made.memory.settings == made.settings


def test_with_isolated_blocks_all_groups_get_the_free_steps():
    """Their own steps would lower next to nothing, but the round computes them anyway."""
    quick, slow = group(local=1.0, mu=0.5), group(local=1.0, mu=1e-4)
    shown = replace(view(early=slow, mid=slow, late=quick), isolated=True)
    steps = {g: a.steps for g, a in dominant(shown, LIMITS, Memory()).settings.items()}
    assert set(steps.values()) == {LIMITS.steps_max}


def test_a_group_that_has_to_descend_keeps_its_steps():
    """One step is predicted to suffice (eta mu = 1). Fewer steps would lower R_con by next to nothing."""
    limits = replace(LIMITS, base=GroupAction(2), steps_max=2)
    settled = group(local=1.0, consensus=SMALL, mu=10.0)
    shown = replace(view(early=settled, mid=settled, late=settled), isolated=True)
    assert {a.steps for a in dominant(shown, limits, Memory()).settings.values()} == {2}
