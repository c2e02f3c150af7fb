"""Events of a device in the order of (time, kind, source, number), which is the same in every run."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from peers.protocol.actions import Action

Event = Callable[[int], list[Action]]  # time in ns -> actions of the protocol


class Kind(IntEnum):
    """Order of events at equal times: scripted events, then messages, then the device's own work."""

    SCRIPT = 0
    MESSAGE = 1
    LEARNER = 2


@dataclass(slots=True, order=True)
class Planned:
    """A queued event. `ready`: work that must be finished before the event is handled, in real time."""

    at_ns: int
    kind: Kind
    source: str
    number: int
    event: Event = field(compare=False)
    ready: Future[Any] | None = field(default=None, compare=False)


class EventQueue:
    """A priority queue of events by time."""

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
        """`number`: order of the events of one source at one time; None: the order of the calls."""
        self._count += 1
        number = self._count if number is None else number
        heapq.heappush(self._heap, Planned(at_ns, kind, source, number, event, ready))

    def next_ns(self) -> int | None:
        return self._heap[0].at_ns if self._heap else None

    def pop(self) -> Planned:
        """Remove the next event and return it. Raises IndexError when the queue is empty."""
        return heapq.heappop(self._heap)

    def drain_due(self, now_ns: int, kind: Kind) -> Iterator[Planned]:
        """Empty the queue. Yields the due events of one kind in order and discards all others."""
        while self._heap:
            planned = heapq.heappop(self._heap)
            if planned.kind is kind and planned.at_ns <= now_ns:
                yield planned
