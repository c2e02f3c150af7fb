"""Local health: a device that is slow itself gives other devices more time.

Source: Dadgar, Phillips and Currey, "Lifeguard: Local Health Awareness for More Accurate Failure Detection",
2018, section IV-A.
"""

from __future__ import annotations


class LocalHealth:
    """The local health multiplier of Lifeguard: a score from 0 (healthy) to `worst`.

    A device multiplies its probe interval and its probe timeout by `factor` = 1 + score.
    """

    def __init__(self, worst: int) -> None:
        self._worst = worst
        self.score = 0

    @property
    def factor(self) -> int:
        return 1 + self.score

    def better(self) -> None:
        """Lower the score by 1: a probe was answered."""
        self._add(-1)

    def worse(self, by: int = 1) -> None:
        """Raise the score by `by`: there is a sign that this device itself is slow.

        The signs are a tick that came late, a suspicion of this device, and helpers that sent no nack.
        """
        self._add(by)

    def _add(self, by: int) -> None:
        self.score = min(max(0, self.score + by), self._worst)
