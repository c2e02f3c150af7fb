"""Suspicions: the time in which a device that did not answer may still refute that it has crashed.

It shrinks with the number of independent accusers (Lifeguard, section IV-B): with C of them beside the first,

    timeout(C) = max(low, high - (high - low) * log(C + 1) / log(K + 1))
    low = alpha * max(1, log10 N) * period,  high = beta * low

so that one that is slow itself and hears nobody agree waits long. A suspicion is about one record of its
subject: any later record that the subject has signed refutes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Sighting(NamedTuple):
    """The latest word of a device that somebody has: which record of which incarnation."""

    device: str
    incarnation: int
    lamport: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the formula above. `low_ns`: what alpha * max(1, log10 N) * period is replaced by; None: nothing."""

    period_ns: int
    alpha: float
    beta: float
    confirmations: int  # K
    low_ns: int | None = None

    def timeout_ns(self, members: int, confirmations: int) -> int:
        """`members`: N, the living, subject and observer among them. With fewer than K others that could
        agree, K is their number."""
        low = self.low_ns or self.alpha * max(1.0, math.log10(max(members, 1))) * self.period_ns
        most = min(self.confirmations, members - 2)
        if most < 1 or confirmations >= most:
            return round(low)
        high = self.beta * low
        return round(high - (high - low) * math.log(confirmations + 1) / math.log(most + 1))


@dataclass(slots=True)
class Suspicion:
    about: Sighting
    since_ns: int
    deadline_ns: int
    accusers: set[str] = field(default_factory=set)


class Suspicions:
    """Who is suspected, by whom, until when."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: dict[str, Suspicion] = {}

    def __contains__(self, device: str) -> bool:
        return device in self._open

    def __iter__(self) -> Iterator[Suspicion]:
        """In order of device."""
        return iter([s for _, s in sorted(self._open.items())])

    def accuse(self, now: int, about: Sighting, accuser: str, members: int) -> bool:
        """Whether this is news: a new suspicion, or another independent accuser while they still count."""
        suspicion = self._open.get(about.device)
        if suspicion is None or suspicion.about < about:
            suspicion = self._open[about.device] = Suspicion(about, now, now)
        elif about < suspicion.about or not self._counts(suspicion, accuser):
            return False
        suspicion.accusers.add(accuser)
        timeout = self._limits.timeout_ns(members, len(suspicion.accusers) - 1)
        suspicion.deadline_ns = suspicion.since_ns + timeout
        return True

    def _counts(self, suspicion: Suspicion, accuser: str) -> bool:
        return accuser not in suspicion.accusers and len(suspicion.accusers) <= self._limits.confirmations

    def heard_of(self, sighting: Sighting) -> None:
        """A later word of its subject refutes a suspicion."""
        suspicion = self._open.get(sighting.device)
        if suspicion is not None and suspicion.about < sighting:
            del self._open[sighting.device]

    def keep(self, devices: Iterable[str]) -> None:
        """Those about anybody else are settled: it left, retired, finished or was declared dead."""
        known = set(devices)
        self._open = {name: s for name, s in self._open.items() if name in known}

    def delay(self, by_ns: int) -> None:
        """Time in which this device stood still does not count."""
        for suspicion in self._open.values():
            suspicion.since_ns += by_ns
            suspicion.deadline_ns += by_ns

    def next_ns(self) -> int | None:
        return min((s.deadline_ns for s in self._open.values()), default=None)

    def take_due(self, now: int) -> list[Suspicion]:
        """Those whose time is over, in order of device; each is told once."""
        due = [s for _, s in sorted(self._open.items()) if s.deadline_ns <= now]
        for suspicion in due:
            del self._open[suspicion.about.device]
        return due
