"""Local health: a device that is slow itself gives the others more time (Lifeguard, section IV-A).

Dadgar, Phillips, Currey: "Lifeguard: Local Health Awareness for More Accurate Failure Detection", 2018.
"""

from __future__ import annotations


class LocalHealth:
    """A score from 0 (well) to `worst`. What a device waits for others is multiplied by 1 + score."""

    def __init__(self, worst: int) -> None:
        self._worst = worst
        self.score = 0

    @property
    def factor(self) -> int:
        return 1 + self.score

    def better(self) -> None:
        """A probe was answered."""
        self._add(-1)

    def worse(self, by: int = 1) -> None:
        """Signs that it is this device that is slow.

        An own tick that came late, a suspicion of this device to refute, helpers that sent not even a nack.
        """
        self._add(by)

    def _add(self, by: int) -> None:
        self.score = min(max(0, self.score + by), self._worst)
