"""The fits of a plan: known factors, coverage of the intervals, and data that determine nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from emulation.planning.regression import Estimate, exactly, fit

SIZES = np.array([8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0])


def observations(noise: float, seed: int, logarithmic: bool) -> tuple[np.ndarray, np.ndarray]:
    """Features and values of 50 + 3 N, or of exp(1 + 1.5 ln N)."""
    errors = noise * np.random.default_rng(seed).standard_normal(len(SIZES))
    if logarithmic:
        x = np.column_stack([np.ones_like(SIZES), np.log(SIZES)])
        return x, np.exp(x @ [1.0, 1.5] + errors)
    x = np.column_stack([np.ones_like(SIZES), SIZES])
    return x, (x @ [50.0, 3.0]) * (1 + errors)


@pytest.mark.parametrize(("logarithmic", "known"), [(False, [50.0, 3.0]), (True, [1.0, 1.5])])
def test_known_factors_are_recovered(logarithmic: bool, known: list[float]) -> None:
    x, y = observations(0.0, 0, logarithmic)
    found = fit(x.tolist(), y.tolist(), range(8), logarithmic)
    assert found is not None and found.coefficients == pytest.approx(known)
    assert found.spread == pytest.approx(0.0, abs=1e-9) and found.freedom == 6


@pytest.mark.parametrize("logarithmic", [False, True])
def test_the_intervals_cover_new_values_as_often_as_they_say(logarithmic: bool) -> None:
    """At a size far outside of the measured ones. The larger of two spreads only makes intervals wider."""
    far, noise, trials = 1000.0, 0.05, 400
    features = [1.0, math.log(far)] if logarithmic else [1.0, far]
    truth = math.exp(1 + 1.5 * math.log(far)) if logarithmic else 50 + 3 * far
    draw, covered = np.random.default_rng(7), 0
    for seed in range(trials):
        x, y = observations(noise, seed, logarithmic)
        found = fit(x.tolist(), y.tolist(), range(8), logarithmic)
        assert found is not None
        covered += found.predict(features).holds(truth * (1 + noise * draw.standard_normal()))
    assert 0.93 <= covered / trials <= 1.0


def test_intervals_widen_with_the_distance_from_the_measurements() -> None:
    x, y = observations(0.05, 3, True)
    found = fit(x.tolist(), y.tolist(), range(8), True)
    assert found is not None
    near, far = (found.predict([1.0, math.log(n)]) for n in (30, 1e6))
    assert far.high / far.middle > 1.5 * near.high / near.middle


def test_a_wrong_form_shows_in_the_spread() -> None:
    """The residuals of a line through a parabola are small. Sizes that are left out are missed by more."""
    x = np.column_stack([np.ones_like(SIZES), SIZES])
    found = fit(x.tolist(), (SIZES**2).tolist(), range(8))
    assert found is not None
    assert found.spread == pytest.approx(math.sqrt(np.mean(found.left_out**2)))
    assert found.spread > np.abs(found.left_out).min()


@pytest.mark.parametrize(
    ("features", "values"),
    [
        ([[1.0, 8.0], [1.0, 16.0]], [1.0, 2.0]),  # as many factors as values
        ([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0], [4.0, 8.0]], [1.0, 2.0, 3.0, 4.0]),  # one term twice
        ([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [1.0, 1.0, 1.0]),  # a term that never occurs
    ],
)
def test_values_that_do_not_determine_the_factors_give_no_fit(
    features: list[list[float]], values: list[float]
) -> None:
    assert fit(features, values, range(len(values))) is None


def test_sums_and_products_of_estimates_go_bound_by_bound() -> None:
    a, b = Estimate(1.0, 2.0, 3.0), Estimate(10.0, 20.0, 40.0)
    assert a + b == (11.0, 22.0, 43.0) and a.times(b) == (10.0, 40.0, 120.0)
    assert a.times(2.0) == (2.0, 4.0, 6.0) and exactly(0.0).times(Estimate(1.0, 1.0, math.inf)).high == 0.0


def test_a_cost_is_never_negative() -> None:
    """Noise alone would give the constant a negative factor here. A logarithm may have one."""
    x = [[1.0, n] for n in (1.0, 2.0, 3.0, 4.0)]
    y = [1.0, 3.0, 5.5, 8.0]
    cost, logarithm = (fit(x, y, range(4), logarithmic) for logarithmic in (False, True))
    assert cost is not None and cost.coefficients[0] == 0.0 and cost.coefficients[1] > 0
    assert logarithm is not None and logarithm.coefficients[0] < 0
