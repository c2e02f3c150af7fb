"""What is to happen on a device, in the order of (time, kind, source, number): the same on every run."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from peers.protocol.actions import Action

Event = Callable[[int], list[Action]]  # the time in ns in, what is to be done out


class Kind(IntEnum):
    """At equal times: first what the scenario does, then messages, then what the device itself has done."""

    SCRIPT = 0
    MESSAGE = 1
    LEARNER = 2


@dataclass(slots=True, order=True)
class Planned:
    """An event. `ready`: what must have been computed, whatever the real time, before it can happen."""

    at_ns: int
    kind: Kind
    source: str
    number: int
    event: Event = field(compare=False)
    ready: Future[Any] | None = field(default=None, compare=False)


class EventQueue:
    """A queue by time."""

    def __init__(self) -> None:
        self._heap: list[Planned] = []
        self._count = 0

    def add(
        self,
        at_ns: int,
        kind: Kind,
        event: Event,
        source: str = "",
        number: int | None = None,
        ready: Future[Any] | None = None,
    ) -> None:
        """`number`: order among events of one source at one time; None: as they were added."""
        self._count += 1
        number = self._count if number is None else number
        heapq.heappush(self._heap, Planned(at_ns, kind, source, number, event, ready))

    def next_ns(self) -> int | None:
        return self._heap[0].at_ns if self._heap else None

    def pop(self) -> Planned:
        """The next event. Raises IndexError when there is none."""
        return heapq.heappop(self._heap)

    def take(self, now_ns: int, kind: Kind) -> Iterator[Planned]:
        """All of a kind that are due, in order; what else is planned is forgotten."""
        while self._heap:
            planned = heapq.heappop(self._heap)
            if planned.kind is kind and planned.at_ns <= now_ns:
                yield planned
