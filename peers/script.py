"""What a scenario makes a device do at virtual times: with a real clock the launcher does it from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Scripted:
    """Once every device that is there has closed `round`. `join`, `return`: this device starts only then."""

    round: int
    kind: Literal["leave", "retire", "crash", "stall", "join", "return", "partition", "heal"]
    duration_s: float = 0.0  # stall: emulated seconds until it goes on
    cut_off: frozenset[str] = frozenset()  # partition: whom this device does not hear any more


class Script:
    """A device's part of a scenario, taken event by event."""

    def __init__(self, events: tuple[Scripted, ...]) -> None:
        self._left = sorted(events, key=lambda event: event.round)

    @property
    def waits(self) -> bool:
        """The device has yet to join."""
        return any(event.kind in ("join", "return") for event in self._left)

    def due(self, slowest_round: int | None) -> list[Scripted]:
        """What the slowest device's closed round makes due; taken once."""
        due = [e for e in self._left if slowest_round is not None and e.round <= slowest_round]
        self._left = [e for e in self._left if e not in due]
        return due
