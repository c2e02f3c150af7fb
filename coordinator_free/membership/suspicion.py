"""Suspicions: the time in which a device that did not answer can still refute that it has crashed.

The timeout shrinks with the number of independent accusers (Lifeguard, section IV-B). With C accusers in
addition to the first:

    timeout(C) = max(low, high - (high - low) * log(C + 1) / log(K + 1))
    low = alpha * max(1, log10 N) * period,  high = beta * low

A slow device that receives no confirmation therefore waits long. The factor alpha * max(1, log10 N) is that
of memberlist. A suspicion is about one record of its subject. Any later record that the subject signed
refutes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class RecordVersion(NamedTuple):
    """The version of a device's record: its incarnation and the Lamport time of the record."""

    device: str
    incarnation: int
    lamport: int


@dataclass(frozen=True, slots=True)
class Limits:
    """The parameters of the formula above.

    `low_ns`: a fixed value in place of alpha * max(1, log10 N) * period.
    """

    period_ns: int
    alpha: float
    beta: float
    confirmations: int  # K
    low_ns: int | None = None

    def timeout_ns(self, members: int, confirmations: int) -> int:
        """The timeout for N = `members` living devices, subject and observer included, and C =
        `confirmations`.

        If fewer than K other devices could confirm, K is their number.
        """
        low = self.low_ns or self.alpha * max(1.0, math.log10(max(members, 1))) * self.period_ns
        most = min(self.confirmations, members - 2)
        if most < 1 or confirmations >= most:
            return round(low)
        high = self.beta * low
        return round(high - (high - low) * math.log(confirmations + 1) / math.log(most + 1))


@dataclass(slots=True)
class Suspicion:
    """One open suspicion. `deadline_ns`: when it becomes a crash verdict."""

    about: RecordVersion
    since_ns: int
    deadline_ns: int
    accusers: set[str] = field(default_factory=set)


class Suspicions:
    """The open suspicions, at most one for each device."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: dict[str, Suspicion] = {}

    def __contains__(self, device: str) -> bool:
        return device in self._open

    def __iter__(self) -> Iterator[Suspicion]:
        """In order of device id."""
        return iter([s for _, s in sorted(self._open.items())])

    def accuse(self, now: int, about: RecordVersion, accuser: str, members: int) -> bool:
        """Add an accusation.

        Returns whether it is new: a new suspicion, or a further accuser of at most K.
        """
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

    def on_record(self, version: RecordVersion) -> None:
        """A record of `version.device` exists.

        If it is later than the suspected record, it refutes the suspicion.
        """
        suspicion = self._open.get(version.device)
        if suspicion is not None and suspicion.about < version:
            del self._open[version.device]

    def keep_only(self, devices: Iterable[str]) -> None:
        """Forget the suspicions about all other devices: those left, retired, finished or were declared
        dead.
        """
        known = set(devices)
        self._open = {name: s for name, s in self._open.items() if name in known}

    def postpone(self, by_ns: int) -> None:
        """Move all deadlines by a time in which this device itself did not run."""
        for suspicion in self._open.values():
            suspicion.since_ns += by_ns
            suspicion.deadline_ns += by_ns

    def next_ns(self) -> int | None:
        return min((s.deadline_ns for s in self._open.values()), default=None)

    def pop_expired(self, now: int) -> list[Suspicion]:
        """Remove and return the suspicions whose deadline is over, in order of device id."""
        due = [s for _, s in sorted(self._open.items()) if s.deadline_ns <= now]
        for suspicion in due:
            del self._open[suspicion.about.device]
        return due
