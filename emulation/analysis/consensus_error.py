"""The consensus error: the distance of the devices' copies from their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

OPEN_EVALUATIONS = 2  # a round is closed when a snapshot of this many evaluations later arrives


@dataclass
class RunningSpread:
    """The mean of vectors and the sum of squared distances from it, updated with each vector (Welford, 1962).

    Computed in float64; exactly 0 for equal vectors. A block that a device does not hold counts as B = 0,
    which is the value that the device computes with.
    """

    n: int = 0
    mean: dict[str, Tensor] = field(default_factory=dict)
    squares: float = 0.0

    def add_vector(self, vector: Mapping[str, Tensor]) -> None:
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
        """sqrt(mean_i ||x_i - mean||^2) / ||mean||; None if the mean is 0."""
        norm = math.sqrt(sum(float(m.square().sum()) for m in self.mean.values()))
        return math.sqrt(max(self.squares, 0.0) / self.n) / norm if norm and self.n else None


class ConsensusErrors:
    """The consensus error of each evaluated round. `every`: rounds between two evaluations."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._open: dict[int, RunningSpread] = {}
        self._closed = -1

    def add_snapshot(self, round_: int, vector: Mapping[str, Tensor]) -> dict[int, float]:
        """Add the snapshot of one device. Returns the errors of the rounds that this snapshot closes."""
        if round_ <= self._closed:
            return {}  # too late: the error of its round was already returned
        self._open.setdefault(round_, RunningSpread()).add_vector(vector)
        return self._close(round_ - OPEN_EVALUATIONS * self._every)

    def close_all(self) -> dict[int, float]:
        """Close all open rounds and return their errors."""
        return self._close(max(self._open, default=-1))

    def _close(self, until: int) -> dict[int, float]:
        errors = {r: self._open.pop(r).error() for r in sorted(self._open) if r <= until}
        self._closed = max([self._closed, *errors])
        return {r: error for r, error in errors.items() if error is not None}
