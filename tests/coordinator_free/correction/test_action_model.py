"""The predicted effect and the cost of actions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coordinator_free.correction.action_model import (
    affordable,
    bytes_used,
    moves,
    opposite,
    predicted,
    progress,
    relative_cost,
    relative_use,
    remaining,
)
from coordinator_free.correction.policy_interface import GroupAction, Limits
from tests.support.diagnoses import GROUPS, LADDER, LIMITS, group, view

BASE = LIMITS.base


def after(**knobs) -> GroupAction:
    return replace(BASE, **knobs)


SUSTAINED = {"consensus": 1.0, "heterogeneity": 100.0}  # the steps between exchanges make up for all of R_con
PASSING = {"consensus": 1.0, "heterogeneity": 0.0}  # copies differ from before: nothing drives them apart


def effect(before: GroupAction, then: GroupAction, **seen) -> tuple[float, float, float]:
    """Factors on the three residuals."""
    late = group(1.0, **{**SUSTAINED, **seen})
    left = predicted(view(late=late), "late", before, then)
    local, consensus, heterogeneity = (a / b if b else 1.0 for a, b in zip(left, late.residuals, strict=True))
    return local, consensus, heterogeneity


def kept(rung: int) -> float:
    rho = LADDER.at(rung).rho
    return rho**2 / (1 - rho**2)


def test_staying_contracts_the_local_residual_and_keeps_the_sustained_one():
    assert effect(BASE, BASE) == pytest.approx(((1 - 0.1 * 0.05) ** (2 * 4 * 5), 1, 1))


def test_without_divergence_staying_contracts_disagreement_by_rho_squared_a_round():
    """R_con = rho^(2K) D_0 in Theorem 2."""
    assert effect(BASE, BASE, **PASSING)[1] == pytest.approx(LADDER.at(0).rho ** (2 * 5))


def test_a_step_more_lowers_the_local_residual_and_raises_the_others():
    more, stay = effect(BASE, after(steps=5)), effect(BASE, BASE)
    assert more[0] / stay[0] == pytest.approx((1 - 0.1 * 0.05) ** (2 * 5))  # one more in each of 5 rounds
    assert more[1] == pytest.approx((5 / 4) ** 2)
    q = 1 - 0.1 * 0.05
    assert more[2] == pytest.approx((5 / 4) ** 2 * (1 - q**8) / (1 - q**10))


def test_where_nothing_contracts_heterogeneity_grows_with_n():
    assert effect(BASE, after(steps=8), mu=0.0)[2] == pytest.approx(2)


def test_with_isolated_blocks_more_steps_do_not_pull_devices_apart():
    late = group(1.0, 0.0, 100.0)
    shown = replace(view(late=late), isolated=True)
    for then in (BASE, after(steps=8), after(steps=2)):
        left = predicted(shown, "late", BASE, then)
        assert left.heterogeneity == 100.0
        assert remaining(shown, "late", left, then) == left.local + left.consensus
    slow, fast = (
        remaining(shown, "late", predicted(shown, "late", BASE, a), a) for a in (BASE, after(steps=8))
    )
    assert fast < slow
    damped = predicted(shown, "late", BASE, after(prox=1.0))
    assert damped.heterogeneity == pytest.approx(100 * 1.1 ** (-8))


def test_with_isolated_blocks_each_residual_counts_where_an_action_lowers_it():
    def left(action: GroupAction, local: float, consensus: float) -> float:
        shown = replace(view(late=group(local, consensus, consensus)), isolated=True)
        return remaining(shown, "late", predicted(shown, "late", BASE, action), action)

    assert left(after(steps=8), 5.0, 0.0) < left(after(rung=LADDER.top), 5.0, 0.0) < left(BASE, 5.0, 0.0)
    assert left(after(rung=LADDER.top), 0.5, 5.0) < left(BASE, 0.5, 5.0) < left(after(steps=8), 0.5, 5.0)


def alone(steps: int, rung: int = 0, period: int = 1, mu: float = 0.05, **changed) -> float:
    """How far the mean of six copies goes in a round of which only one moves."""
    shown = replace(view(late=group(mu=mu)), isolated=True, **changed)
    return progress(shown, "late", after(steps=steps, rung=rung, period=period))


def test_the_mean_covers_one_mth_of_the_move_of_a_single_owner():
    assert alone(4, averages=False) == pytest.approx((1 - 0.995**4) / 6)
    assert progress(view(late=group()), "late", after(steps=4)) == pytest.approx(1 - 0.995**4)


def test_if_an_owner_progresses_far_a_denser_graph_helps_and_more_steps_do_not():
    far, near = 8.0, 0.01  # eta mu = 0.8, 0.001
    assert alone(8, mu=far) < 1.05 * alone(4, mu=far)
    assert alone(4, rung=LADDER.top, mu=far) > 1.3 * alone(4, mu=far)
    assert alone(8, mu=near) > 1.9 * alone(4, mu=near)
    assert alone(4, rung=LADDER.top, mu=near) < 1.05 * alone(4, mu=near)


def test_an_exchange_every_other_round_pays_off_only_for_small_steps():
    assert alone(4, period=2, mu=0.01) == pytest.approx(alone(4, mu=0.01), rel=0.05)
    assert alone(4, period=2, mu=8.0) == pytest.approx(alone(4, mu=8.0) / 2, rel=0.05)


def test_in_a_steady_descent_the_owner_is_as_far_ahead_as_predicted():
    """A quadratic: the owner moves a of its way, then all copies mix on a ring."""
    a, size = 0.6, 6
    mixing = np.zeros((size, size))
    for i in range(size):
        for j in (i - 1, i, i + 1):
            mixing[i, j % size] = 1 / 3
    left = np.ones(size)  # copies, distance to the optimum
    means = []
    for _ in range(60):
        left[0] *= 1 - a
        left = mixing @ left
        means.append(left.mean())
    seen = 1 - means[-1] / means[-2]
    steps_mu = (1 - (1 - a) ** (1 / 4)) / 0.1
    assert alone(4, mu=steps_mu, averages=False) > 1.4 * seen
    assert alone(4, mu=steps_mu) == pytest.approx(seen, rel=0.15)


def test_weak_mixing_contracts_less_than_its_graph_could():
    late = group(1.0, **PASSING)
    for gamma in (1.0, 0.4):
        action, rho = replace(BASE, gamma=gamma), 1 - gamma * (1 - LADDER.at(0).rho)
        assert predicted(view(late=late), "late", action, action).consensus == pytest.approx(rho**10)


def test_damping_lowers_heterogeneity_and_drift_and_slows_descent():
    damped, stay = effect(BASE, after(prox=1.0)), effect(BASE, BASE)
    assert damped[1] == pytest.approx(1.1 ** (-8))
    assert damped[2] == pytest.approx(1.1 ** (-8), rel=0.12)
    assert damped[0] > stay[0]


def test_a_denser_graph_lowers_disagreement():
    """By (rho' / rho)^2 where both are small, and by that in every round where it is only passing."""
    assert effect(BASE, after(rung=2))[1:] == pytest.approx((kept(2) / kept(0), 1))
    ratio = LADDER.at(2).rho / LADDER.at(0).rho
    passing = effect(BASE, after(rung=2), **PASSING)[1] / effect(BASE, BASE, **PASSING)[1]
    assert passing == pytest.approx(ratio ** (2 * 5))


def test_part_of_the_disagreement_may_be_sustained():
    mixed = effect(BASE, BASE, heterogeneity=10.0)[1]
    share = 10 * (1 - 0.995**8) * kept(0)
    assert mixed == pytest.approx(share + (1 - share) * LADDER.at(0).rho ** 10)


def test_exchanging_every_other_round_quadruples_disagreement_and_halves_the_bytes():
    assert effect(BASE, after(period=2))[1] == pytest.approx(4)
    assert effect(BASE, after(period=2), **PASSING)[1] == pytest.approx(LADDER.at(0).rho ** 5)
    rare = dict.fromkeys(GROUPS, after(period=2))
    assert bytes_used(rare, view()) == bytes_used(dict.fromkeys(GROUPS, BASE), view()) / 2


def test_the_cost_of_the_base_is_one():
    uniform = dict.fromkeys(GROUPS, BASE)
    assert relative_use(uniform, view(), LIMITS) == (1, 1)
    assert relative_cost(uniform, view(), LIMITS) == 1


def test_bytes_follow_the_edges_of_each_groups_graph():
    settings = {"early": BASE, "mid": BASE, "late": after(rung=1)}
    edges = len(LADDER.at(1).edges)
    assert relative_use(settings, view(), LIMITS)[0] == pytest.approx((6 + 6 + edges) / 18)


def test_compute_follows_the_group_with_the_most_steps():
    settings = {"early": after(steps=1), "mid": BASE, "late": after(steps=8)}
    assert relative_use(settings, view(), LIMITS)[1] == 2


def test_settings_within_the_bytes_are_affordable():
    denser, steps = after(rung=1), after(steps=8)
    uniform = dict.fromkeys(GROUPS, BASE)
    assert affordable(uniform, view(), LIMITS)
    assert not affordable({**uniform, "late": denser}, view(), LIMITS)
    assert affordable({**uniform, "late": denser, "early": after(period=2)}, view(), LIMITS)
    assert affordable({**uniform, "late": steps}, view(), LIMITS)


def test_a_device_alone_has_no_bytes_to_pay_for():
    alone = replace(view(), groups={g: group(bytes=0.0) for g in GROUPS})
    uniform = dict.fromkeys(GROUPS, BASE)
    assert relative_cost(uniform, alone, LIMITS) == 0.5
    assert relative_cost(uniform, alone, replace(LIMITS, byte_share=1.0)) > 0


def test_moves_are_one_notch_and_stop_at_the_limits():
    settings = {"late": GroupAction(13, prox=10.0, period=8, rung=LADDER.top)}
    labels = {move.label for move in moves(settings, LIMITS, view())}
    assert labels == {"less-steps", "less-prox", "less-gamma", "less-period", "less-rung"}
    settings = {"late": GroupAction(1, gamma=LIMITS.gamma_min, rung=-LADDER.base)}
    labels = {move.label for move in moves(settings, LIMITS, view())}
    assert labels == {"more-steps", "more-prox", "more-gamma", "more-period", "more-rung"}
    newest = replace(view(), averages=False)
    assert labels - {move.label for move in moves(settings, LIMITS, newest)} == {"more-gamma"}


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 9])
def test_a_notch_up_is_undone_by_a_notch_down(steps):
    start = {"late": GroupAction(steps, prox=1e-2, period=2, rung=0)}
    for move in moves(start, LIMITS, view()):
        back = {m.label: m for m in moves({"late": move.action}, LIMITS, view())}[opposite(move.label)]
        assert replace(back.action, prox=1e-2) == start["late"]
        assert back.action.prox == pytest.approx(1e-2)


def test_damping_goes_to_zero_and_back():
    first = {m.label: m for m in moves({"late": BASE}, LIMITS, view())}["more-prox"]
    assert first.action.prox == LIMITS.prox_min
    assert {m.label: m for m in moves({"late": first.action}, LIMITS, view())}["less-prox"].action.prox == 0


def test_description_of_a_move():
    told = {
        m.label: m.describe() for m in moves({"late": GroupAction(4, prox=1.0, period=2)}, LIMITS, view())
    }
    assert told["more-steps"] == "steps 6" and told["less-period"] == "sync 1"
    assert told["more-rung"] == "graph +1" and told["more-prox"] == "prox 3.2"
    assert {m.label: m.describe() for m in moves({"late": BASE}, LIMITS, view())}["more-prox"] == "prox 1e-3"


@pytest.mark.parametrize(
    "bad",
    [
        {"steps_min": 5},
        {"steps_max": 3},
        {"prox_min": 0.0},
        {"prox_min": 11.0},
        {"base": GroupAction(4, prox=11.0)},
        {"base": GroupAction(4, gamma=0.1)},
        {"base": GroupAction(4, period=9)},
    ],
)
def test_empty_limits_are_refused(bad):
    with pytest.raises(ValueError):
        replace(LIMITS, **bad)
    assert Limits()
