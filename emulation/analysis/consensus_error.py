"""How far the copies that devices hold are from their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

KEPT = 2  # a round is closed when a snapshot of this many evaluations later comes


@dataclass
class RunningSpread:
    """Mean of vectors and sum of squared distances from it, one vector at a time (Welford), in float64.

    Exactly 0 for equal vectors. A block that a device does not hold counts as B = 0: it computes with that.
    """

    n: int = 0
    mean: dict[str, Tensor] = field(default_factory=dict)
    squares: float = 0.0

    def add(self, vector: Mapping[str, Tensor]) -> None:
        self.n += 1
        for key in {*self.mean, *vector}:
            old = self.mean.get(key)
            new = vector[key].double() if key in vector else None
            if old is None:
                assert new is not None
                old = new.new_zeros(new.shape)
            difference = old.neg() if new is None else new - old
            self.mean[key] = old + difference / self.n
            remaining = -self.mean[key] if new is None else new - self.mean[key]
            self.squares += float((difference * remaining).sum())

    def error(self) -> float | None:
        """sqrt(mean_i ||x_i - mean||^2) / ||mean||; None for a mean of 0."""
        norm = math.sqrt(sum(float(m.square().sum()) for m in self.mean.values()))
        return math.sqrt(max(self.squares, 0.0) / self.n) / norm if norm and self.n else None


class Consensus:
    """The spread of each round's snapshots. `every`: rounds between two evaluations."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._open: dict[int, RunningSpread] = {}
        self._closed = -1

    def add(self, round_: int, vector: Mapping[str, Tensor]) -> dict[int, float]:
        """Take in one device's snapshot; returns the errors of rounds that are thereby over."""
        if round_ <= self._closed:
            return {}  # too late: a figure for its round has been given
        self._open.setdefault(round_, RunningSpread()).add(vector)
        return self._close(round_ - KEPT * self._every)

    def rest(self) -> dict[int, float]:
        """The errors of all rounds that are still open."""
        return self._close(max(self._open, default=-1))

    def _close(self, until: int) -> dict[int, float]:
        over = {r: self._open.pop(r).error() for r in sorted(self._open) if r <= until}
        self._closed = max([self._closed, *over])
        return {r: error for r, error in over.items() if error is not None}
