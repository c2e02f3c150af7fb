"""Statistics of experiments. Pure functions (method 10)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import distributions

MARGIN = 0.05  # of equivalence to the oracle (method 10: Power)
RECOVERED = 0.95  # share of the oracle's retain accuracy
SUPPORT = 10  # fewest members and non-members that a true or false positive rate counts


@dataclass(frozen=True)
class Interval:
    """A mean with its t interval. p: two-sided, of the mean being 0.

    `low`, `high` and `p` are None with fewer than two values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    p: float | None = None


def interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Student's t interval of the mean of independent values, one for each seed. None without values.

    Paired data: pass the differences. A percentile bootstrap of 4 values covers the mean in 82 % of cases and
    not in 95 %; tests/emulation/experiments/test_statistics.py simulates the coverage of this interval.
    """
    if not values:
        return None
    mean, error = _mean_and_error(values)
    n = len(values)
    if n == 1:
        return Interval(mean, None, None, 1)
    half = float(distributions.t.ppf((1 + level) / 2, n - 1)) * error
    return Interval(mean, mean - half, mean + half, n, _two_sided_p(mean, error, n))


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error, 0 for values that are equal or one value."""
    found = np.asarray(values, dtype=np.float64)
    equal = bool((found == found[0]).all())  # rounding of the mean would leave a spread
    error = 0.0 if equal else float(found.std(ddof=1)) / math.sqrt(len(found))
    return float(found[0]) if equal else float(found.mean()), error


def _two_sided_p(mean: float, error: float, n: int) -> float:
    if error == 0:
        return float(mean == 0)
    return float(2 * distributions.t.sf(abs(mean) / error, n - 1))


def cluster_means(values: Iterable[tuple[int, float]]) -> list[float]:
    """The mean of the values of each seed, from pairs (seed, value).

    Settings of one seed share its data, so that they are not independent.
    """
    by_seed: dict[int, list[float]] = {}
    for seed, value in values:
        by_seed.setdefault(seed, []).append(value)
    return [float(np.mean(own)) for _, own in sorted(by_seed.items())]


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Adjusted p of all claims of a table (Holm, 1979): the chance of any false claim stays below the level.

    None: no test; it does not count as a claim.
    """
    order = sorted((value, index) for index, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        adjusted[index] = largest
    return adjusted


def equivalence_p(differences: Sequence[float], margin: float = MARGIN) -> float | None:
    """TOST: the larger p of two one-sided paired t tests, of mean <= -margin and of mean >= margin.

    Below 0.05: equivalent within the margin. None with fewer than two differences. If all differences are
    equal, p is 0 or 1.
    """
    n = len(differences)
    if n < 2:
        return None
    mean, error = _mean_and_error(differences)
    nearest = margin - abs(mean)
    if error == 0:
        return 0.0 if nearest > 0 else 1.0
    return float(distributions.t.sf(nearest / error, n - 1))


# -- comparison with other arms ----------------------------------------------------------------------------
def relative_improvement(uniform: float, arm: float) -> float | None:
    """RI = 100 (L_uniform - L_arm) / L_uniform, in percent; None if L_uniform is 0 or less."""
    return 100 * (uniform - arm) / uniform if uniform > 0 else None


def norm_comm(sent: float, uniform: float) -> float | None:
    """NormComm: bytes divided by the bytes of `uniform`; None if those are 0."""
    return sent / uniform if uniform else None


def tow(differences: Sequence[float | None]) -> float | None:
    """ToW = prod (1 - |d|) over the differences to the oracle in forget, retain and test accuracy.

    None if one of them was not measured.
    """
    known = [1 - abs(d) for d in differences if d is not None]
    return math.prod(known) if len(known) == len(differences) else None


# -- membership inference ----------------------------------------------------------------------------------
def auc(members: Sequence[float], others: Sequence[float]) -> float | None:
    """P(loss of a member < loss of a non-member), where a tie counts half. 0.5: the loss reveals nothing.

    None without members or without non-members.
    """
    if not len(members) or not len(others):
        return None
    gap = np.asarray(others)[None, :] - np.asarray(members)[:, None]
    return float((gap > 0).mean() + 0.5 * (gap == 0).mean())


def tpr_at_fpr(
    members: Sequence[float], others: Sequence[float], fpr: float = 0.01, support: float = SUPPORT
) -> float | None:
    """TPR of membership inference at a given FPR.

    The loss threshold is the highest one with at most a share `fpr` of the non-members below it. None if
    either side has too few values for the rate: `support` / fpr, which is 1000 at 1 %.
    """
    if min(len(members), len(others)) * fpr < support:
        return None
    allowed = math.floor(fpr * len(others) + 1e-9)  # 0.29 * 100 is below 29
    threshold = float(np.sort(np.asarray(others))[allowed])
    return float((np.asarray(members) < threshold).mean())


# -- recovery ----------------------------------------------------------------------------------------------
def recovery(rounds: Sequence[int], accuracy: Sequence[float], oracle: float) -> int | None:
    """The first round with at least 95 % of the accuracy of the oracle, or None. rounds: ascending."""
    reached = (k for k, a in zip(rounds, accuracy, strict=True) if a >= RECOVERED * oracle)
    return next(reached, None)
