"""The distances of a device's copies from its neighbours' copies, for an allocator (rate_allocation.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator_free.averaging.rate_allocation import Transfer
from coordinator_free.identifiers import Part


class MatrixStatistics(NamedTuple):
    """Of an own copy: ||B||^2; mean over a codec's chunks of the largest value squared; number of values."""

    norm2: float
    peak2: float
    values: int


@dataclass(frozen=True, slots=True)
class Distances:
    """`matrices`: the own copies, by part. `apart2`: ||B_mine - B_theirs||^2 of known neighbour copies."""

    matrices: Mapping[Part, MatrixStatistics] = field(default_factory=dict)
    apart2: Mapping[Transfer, float] = field(default_factory=dict)
