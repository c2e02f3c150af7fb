"""Linear models of positive figures whose errors are relative, and their prediction intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import distributions

LEVEL = 0.95
MOST_EXPONENT = 700.0  # e to this power is a float
MOST_CONDITION = 1e6  # of the scaled features
Vector = NDArray[np.float64]


class Estimate(NamedTuple):
    """A prediction with its interval. No figure of the model is negative."""

    low: float
    middle: float
    high: float

    def __add__(self, other: object) -> Estimate:
        """The sum, bound by bound. It covers at least as often as each summand."""
        assert isinstance(other, Estimate)
        return Estimate(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, other: Estimate | float) -> Estimate:
        """The product with a number or with another estimate, bound by bound."""
        factors = other if isinstance(other, Estimate) else (other,) * 3
        return Estimate(*(a * b if a and b else 0.0 for a, b in zip(self, factors, strict=True)))

    def holds(self, value: float) -> bool:
        """Whether a value is in the interval."""
        return self.low <= value <= self.high


def exactly(value: float) -> Estimate:
    """A value without an error."""
    return Estimate(value, value, value)


@dataclass(frozen=True)
class Fit:
    """y = x b (1 + e) with b >= 0, or ln y = x b + e if `logarithmic`; e is normal.

    spread: standard deviation of e. covariance: of b without its bound 0, divided by spread^2. So the
    intervals are wider than with the bound.
    left_out: the relative error of each observation in a fit without all observations of its group; nan if
    the others determine no b.
    """

    coefficients: Vector
    covariance: NDArray[np.float64]
    spread: float
    freedom: int
    left_out: Vector
    logarithmic: bool = False

    def predict(self, features: Sequence[float]) -> Estimate:
        """The prediction interval of one new observation (Student's t, LEVEL)."""
        x = np.asarray(features, dtype=np.float64)
        middle, of_b = float(x @ self.coefficients), float(x @ self.covariance @ x)
        scale = math.sqrt((1.0 if self.logarithmic else middle**2) + of_b)
        half = float(distributions.t.ppf((1 + LEVEL) / 2, self.freedom)) * self.spread * scale
        bounds = (middle - half, middle, middle + half)
        return Estimate(*((_exp(v) if self.logarithmic else max(0.0, v)) for v in bounds))


def _exp(value: float) -> float:
    return math.exp(value) if value < MOST_EXPONENT else math.inf


def fit(
    features: Sequence[Sequence[float]],
    values: Sequence[float],
    groups: Sequence[int],
    logarithmic: bool = False,
) -> Fit | None:
    """Least squares of (y - x b) / y with b >= 0, or of ln y - x b; None if the values do not determine b.

    A cost cannot be negative, and a negative factor would make a figure fall where its term grows.
    groups: one number for each observation.
    spread is the larger of two: that of the residuals, and that of the errors of groups that were left out.
    A model of a wrong form has small residuals where it was fitted, and larger errors elsewhere.
    """
    x, y = np.asarray(features, dtype=np.float64), np.asarray(values, dtype=np.float64)
    x, y = (x, np.log(y)) if logarithmic else (x / y[:, None], np.ones(len(y)))
    freedom = len(x) - x.shape[1]
    coefficients = _solve(x, y, logarithmic) if freedom > 0 else None
    left_out = _left_out(x, y, np.asarray(groups), logarithmic)
    if coefficients is None or np.isnan(left_out).all():
        return None
    residual = float(np.linalg.norm(y - x @ coefficients)) / math.sqrt(freedom)
    spread = max(residual, math.sqrt(float(np.nanmean(left_out**2))))
    return Fit(coefficients, _inverse(x), spread, freedom, left_out, logarithmic)


def _solve(x: NDArray[np.float64], y: Vector, signed: bool) -> Vector | None:
    """b with x b = y as far as possible, and b >= 0 unless `signed`; None if x does not have full rank.

    Columns are scaled first.
    """
    scale = np.linalg.norm(x, axis=0)
    if len(x) < x.shape[1] or not scale.all() or np.linalg.cond(x / scale) > MOST_CONDITION:
        return None
    solved = np.linalg.lstsq(x / scale, y, rcond=None)[0] if signed else nnls(x / scale, y)[0]
    return np.asarray(solved / scale)


def _inverse(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x' x)^-1."""
    scale = np.linalg.norm(x, axis=0)
    return np.asarray(np.linalg.inv((x / scale).T @ (x / scale)) / np.outer(scale, scale))


def _left_out(x: NDArray[np.float64], y: Vector, groups: NDArray[np.int_], signed: bool) -> Vector:
    """The errors of each group, predicted from the others; nan if the others determine no b."""
    errors = np.full(len(x), math.nan)
    for group in np.unique(groups):
        inside = groups == group
        coefficients = _solve(x[~inside], y[~inside], signed)
        if coefficients is not None:
            errors[inside] = y[inside] - x[inside] @ coefficients
    return errors
