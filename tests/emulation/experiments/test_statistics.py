"""Statistics of experiments, on cases that can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulation.experiments import statistics

LOSSES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)


def test_interval_of_equal_values_is_a_point() -> None:
    found = statistics.interval([0.3] * 5)
    assert found is not None
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((0.3, 0.3, 0.3, 5))


def test_interval_of_two_values_by_hand() -> None:
    # sd 0.7071, error 0.5, t of 97.5 % with one degree of freedom is 12.706; p of t = 1 is 1/2.
    found = statistics.interval([0.0, 1.0])
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, -5.853, 6.853), abs=1e-3)
    assert found.p == pytest.approx(0.5)


SKEWED, NORMAL = "exponential", "normal"


@pytest.mark.parametrize(("law", "n", "least"), [(NORMAL, 4, 0.94), (NORMAL, 10, 0.94), (SKEWED, 10, 0.88)])
def test_intervals_cover_the_mean(law: str, n: int, least: float) -> None:
    """1500 simulated tables: a standard error of 0.006. A percentile bootstrap covers 0.82 at n = 4."""
    draw = np.random.Generator(np.random.Philox(key=5))
    mean = 1.0 if law == SKEWED else 0.0
    covered = 0
    for _ in range(1500):
        found = statistics.interval(list(getattr(draw, law)(size=n)))
        assert found is not None and found.low is not None and found.high is not None
        covered += found.low <= mean <= found.high
    assert covered / 1500 > least


def test_pooled_settings_of_a_seed_do_not_narrow_the_interval() -> None:
    pairs = [(seed, 1.0 * seed) for seed in range(4) for _ in range(3)]
    assert statistics.interval(statistics.cluster_means(pairs)) == statistics.interval([0.0, 1.0, 2.0, 3.0])


def test_holm_by_hand() -> None:
    # Smallest first: 3 x 0.01, 2 x 0.03, then 0.04 rises to the one before it.
    assert statistics.holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


def test_one_seed_has_no_interval() -> None:
    assert statistics.interval([2.0]) == statistics.Interval(2.0, None, None, 1)
    assert statistics.interval([]) is None


def test_interval_is_the_same_each_time() -> None:
    values = [0.1, 0.4, 0.2, 0.9]
    assert statistics.interval(values) == statistics.interval(values)


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


def test_a_tpr_needs_values_on_both_sides() -> None:
    others = [float(i) for i in range(100)]  # ten may be below the threshold: it is 10.0
    members = [*[0.5] * 60, *[50.0] * 40]
    assert statistics.tpr_at_fpr(members, others, 0.1) == pytest.approx(0.6)
    assert statistics.tpr_at_fpr(members[:99], others, 0.1) is None
    assert statistics.tpr_at_fpr(members, others[:99], 0.1) is None
    assert statistics.tpr_at_fpr(members, others) is None  # 1 %: 1000 are needed


@given(st.lists(st.integers(0, 6).map(float), min_size=40, max_size=60))
def test_threshold_never_lets_more_non_members_pass(others: list[float]) -> None:
    passed = statistics.tpr_at_fpr(others, others, 0.25)
    assert passed is not None and passed <= 0.25 + 1e-9


def test_recovery_is_the_first_round_at_95_percent() -> None:
    assert statistics.recovery([0, 5, 10, 15], [0.1, 0.94, 0.95, 0.9], 1.0) == 10
    assert statistics.recovery([0, 5], [0.1, 0.2], 1.0) is None
