"""Statistics of experiments. Pure functions; random draws have a fixed seed (method 10)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
MARGIN = 0.05  # of equivalence to the oracle (method 10: Power)
RECOVERED = 0.95  # share of the oracle's retain accuracy


@dataclass(frozen=True)
class Interval:
    """A mean with its percentile bootstrap interval. `low`, `high` are None with fewer than two values."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> Interval | None:
    """Percentile bootstrap interval of the mean. None without values. Paired data: pass the differences."""
    if not values:
        return None
    found = np.asarray(values, dtype=np.float64)
    if len(found) == 1:
        return Interval(float(found[0]), None, None, 1)
    draw = np.random.Generator(np.random.Philox(key=seed))
    means = found[draw.integers(len(found), size=(RESAMPLES, len(found)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(found.mean()), float(low), float(high), len(found))


def equivalence_p(differences: Sequence[float], margin: float = MARGIN) -> float | None:
    """TOST: the larger p of two one-sided paired t tests, of mean <= -margin and of mean >= margin.

    Below 0.05: equivalent within the margin. None with fewer than two differences. If all differences are
    equal, p is 0 or 1.
    """
    n = len(differences)
    if n < 2:
        return None
    found = np.asarray(differences, dtype=np.float64)
    mean, error = float(found.mean()), float(found.std(ddof=1)) / math.sqrt(n)
    nearest = margin - abs(mean)
    if error == 0:
        return 0.0 if nearest > 0 else 1.0
    return t_tail(nearest / error, n - 1)


def t_tail(t: float, degrees: int) -> float:
    """P(T > t) of Student's t with whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(degrees))
    cos2 = math.cos(theta) ** 2
    if degrees % 2:
        term, total = math.cos(theta), 0.0
        for k in range(3, degrees + 1, 2):
            total += term
            term *= cos2 * (k - 1) / k
        inside = 2 / math.pi * (theta + math.sin(theta) * total)
    else:
        term, total = 1.0, 0.0
        for k in range(2, degrees + 1, 2):
            total += term
            term *= cos2 * (k - 1) / k
        inside = math.sin(theta) * total
    return (1 - inside) / 2


# -- comparison with other arms ----------------------------------------------------------------------------
def relative_improvement(uniform: float, arm: float) -> float | None:
    """RI = 100 (L_uniform - L_arm) / L_uniform, in percent; None if L_uniform is 0 or less."""
    return 100 * (uniform - arm) / uniform if uniform > 0 else None


def norm_comm(sent: float, uniform: float) -> float | None:
    """NormComm: bytes divided by the bytes of `uniform`; None if those are 0."""
    return sent / uniform if uniform else None


def tow(differences: Sequence[float]) -> float:
    """ToW = prod (1 - |d|) over the differences to the oracle in forget, retain and test accuracy."""
    return math.prod(1 - abs(d) for d in differences)


# -- membership inference ----------------------------------------------------------------------------------
def auc(members: Sequence[float], others: Sequence[float]) -> float | None:
    """P(loss of a member < loss of a non-member), where a tie counts half. 0.5: the loss reveals nothing.

    None without members or without non-members.
    """
    if not len(members) or not len(others):
        return None
    gap = np.asarray(others)[None, :] - np.asarray(members)[:, None]
    return float((gap > 0).mean() + 0.5 * (gap == 0).mean())


def tpr_at_fpr(members: Sequence[float], others: Sequence[float], fpr: float = 0.01) -> float | None:
    """TPR of membership inference at a given FPR.

    The loss threshold is the highest one with at most a share `fpr` of the non-members below it. None without
    members or without non-members.
    """
    if not len(members) or not len(others):
        return None
    allowed = math.floor(fpr * len(others) + 1e-9)  # 0.29 * 100 is below 29
    threshold = float(np.sort(np.asarray(others))[allowed])
    return float((np.asarray(members) < threshold).mean())


# -- recovery ----------------------------------------------------------------------------------------------
def recovery(rounds: Sequence[int], accuracy: Sequence[float], oracle: float) -> int | None:
    """The first round with at least 95 % of the accuracy of the oracle, or None. rounds: ascending."""
    reached = (k for k, a in zip(rounds, accuracy, strict=True) if a >= RECOVERED * oracle)
    return next(reached, None)
