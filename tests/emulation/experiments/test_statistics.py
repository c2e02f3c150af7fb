"""Statistics of experiments, on cases that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulation.experiments import statistics

LOSSES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)


def test_interval_of_equal_values_is_a_point() -> None:
    found = statistics.interval([0.3] * 5)
    assert found is not None
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((0.3, 0.3, 0.3, 5))
    assert found.excludes_zero


def test_interval_of_two_values_spans_both() -> None:
    # Resamples of {0, 1} have means 0, 1/2, 1 with chances 1/4, 1/2, 1/4: both ends exceed 2.5 %.
    found = statistics.interval([0.0, 1.0])
    assert found is not None
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    assert not found.excludes_zero


def test_one_seed_has_no_interval() -> None:
    assert statistics.interval([2.0]) == statistics.Interval(2.0, None, None, 1)
    assert statistics.interval([]) is None


def test_interval_is_the_same_each_time() -> None:
    values = [0.1, 0.4, 0.2, 0.9]
    assert statistics.interval(values) == statistics.interval(values)


@pytest.mark.parametrize(
    ("t", "degrees", "p"),  # the 5 % and 2.5 % points of any table; t = 0 halves
    [
        (6.314, 1, 0.05),
        (2.920, 2, 0.05),
        (2.353, 3, 0.05),
        (1.833, 9, 0.05),
        (2.228, 10, 0.025),
        (0.0, 4, 0.5),
    ],
)
def test_t_tail_equals_the_published_tables(t: float, degrees: int, p: float) -> None:
    assert statistics.t_tail(t, degrees) == pytest.approx(p, rel=1e-3)
    assert statistics.t_tail(-t, degrees) == pytest.approx(1 - p, rel=1e-3)


def test_equivalence_by_hand() -> None:
    # Mean 0, sd 0.02, n = 4: t = 0.05 / 0.01 = 5 with 3 degrees; P(T > 5) = 0.0077.
    a = 0.02 * math.sqrt(3) / 2
    assert statistics.equivalence_p([a, -a, a, -a]) == pytest.approx(0.0077, abs=1e-4)


def test_equivalence_without_spread_is_decided_by_the_mean() -> None:
    assert statistics.equivalence_p([0.04, 0.04]) == 0.0
    assert statistics.equivalence_p([-0.06, -0.06]) == 1.0
    assert statistics.equivalence_p([0.0]) is None


def test_a_mean_outside_the_margin_is_not_equivalent() -> None:
    p = statistics.equivalence_p([0.09, 0.11, 0.10, 0.12])
    assert p is not None and p > 0.99


def test_improvement_and_communication_are_relative_to_uniform() -> None:
    assert statistics.relative_improvement(0.42, 0.39) == pytest.approx(7.142857)
    assert statistics.relative_improvement(0.0, 0.1) is None
    assert statistics.norm_comm(58.0, 100.0) == pytest.approx(0.58)
    assert statistics.norm_comm(1.0, 0.0) is None


def test_tow_is_a_product() -> None:
    assert statistics.tow([0.1, -0.2, 0.0]) == pytest.approx(0.9 * 0.8)


def test_auc_counts_pairs() -> None:
    # Pairs (member, other): 1<2, 1<3, 2=2, 2<3 -> 3.5 of 4.
    assert statistics.auc([1.0, 2.0], [2.0, 3.0]) == pytest.approx(3.5 / 4)
    assert statistics.auc([], [1.0]) is None


@given(LOSSES, LOSSES)
def test_auc_of_exchanged_sides_is_one_minus_auc(members: list[float], others: list[float]) -> None:
    there, back = statistics.auc(members, others), statistics.auc(others, members)
    assert there is not None and back is not None
    assert there + back == pytest.approx(1.0)


def test_tpr_at_one_percent_lets_one_of_a_hundred_pass() -> None:
    others = [float(i) for i in range(100)]  # one may be below the threshold: it is 1.0
    assert statistics.tpr_at_fpr([0.5, 0.9, 1.0, 50.0], others) == pytest.approx(0.5)
    assert statistics.tpr_at_fpr([0.5, -1.0], others[:40]) == pytest.approx(0.5)  # none may


@given(LOSSES, LOSSES, st.floats(0, 0.99))
def test_threshold_never_lets_more_non_members_pass(
    members: list[float], others: list[float], fpr: float
) -> None:
    passed = statistics.tpr_at_fpr(others, others, fpr)
    assert passed is not None and passed <= fpr + 1e-9
    assert statistics.tpr_at_fpr(members, others, fpr) is not None


def test_recovery_is_the_first_round_at_95_percent() -> None:
    assert statistics.recovery([0, 5, 10, 15], [0.1, 0.94, 0.95, 0.9], 1.0) == 10
    assert statistics.recovery([0, 5], [0.1, 0.2], 1.0) is None
