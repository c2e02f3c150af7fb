"""How a figure grows with the number of devices: the exponent of a power law."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The least squares slope of log(value) on log(size).

    Values that are missing (nan) or not positive have no logarithm and are left out. nan if fewer than two
    sizes are left.
    """
    pairs = [(n, v) for n, v in zip(sizes, values, strict=True) if v > 0 and math.isfinite(v)]
    if len({n for n, _ in pairs}) < 2:
        return math.nan
    at, of = np.log(np.array(pairs, dtype=float)).T
    return float(np.polyfit(at, of, 1)[0])


def exponent_of_log(sizes: Sequence[float]) -> float:
    """The exponent that log N itself has on these sizes: the bound of "no faster than log N"."""
    return exponent(sizes, [math.log(n) for n in sizes])
