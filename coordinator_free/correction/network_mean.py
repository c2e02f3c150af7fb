"""Means over the network without a coordinator (method 6).

Every device relays the newest vector that it has of each origin, and sums them in order of device id.
Averaging in place would be cheaper, but loses mass when a device crashes. Here a crash costs only the vector
of the crashed device, which is dropped with its block. Messages may be lost, repeated and reordered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator_free.identifiers import BlockKey

Values = NDArray[np.float32]
Rank = tuple[int, bytes]
MAX_VALUE = 1e30  # of a report: larger values would overflow in the sums and products of the residuals
MOST_NAMES = 1024  # origins and peers that are remembered
NOTHING: Rank = (-1, b"")


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """One device's vector. `epoch`: the round of its measurement; a later one replaces an earlier one.

    `values`: float32, as on the wire, so that the origin sums the same numbers as all other devices.
    """

    origin: BlockKey
    epoch: int
    values: Values
    signature: bytes = b""

    def signed_data(self) -> bytes:
        """The bytes that the origin signs."""
        head = repr((self.origin.device, self.origin.incarnation, self.epoch)).encode()
        return head + self.values.astype("<f4").tobytes()

    @property
    def rank(self) -> Rank:
        """Orders reports of one origin. The hash decides between two reports of one epoch."""
        return self.epoch, hashlib.blake2b(self.signed_data(), digest_size=16).digest()


@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """The mean of the vectors of `origins`. `oldest`: the smallest epoch among them.

    `digest`: 16 bytes, equal where the same vectors were summed. Two devices that compare digests know
    whether they decide from the same values.
    """

    values: NDArray[np.float64]
    origins: tuple[BlockKey, ...]
    oldest: int
    digest: bytes


def _everyone(report: Report) -> bool:
    return True


@dataclass
class NetworkMean:
    """The vectors that one device holds: at most `max_origins` vectors of `length` numbers.

    `verify`: whether the origin is a member and signed the report. Without it a relay could invent both.
    """

    length: int
    max_origins: int
    verify: Callable[[Report], bool] = _everyone
    refused: int = 0
    _newest: dict[BlockKey, Report] = field(default_factory=dict)
    _forgotten: dict[BlockKey, None] = field(default_factory=dict)  # in order of time
    _known_by: dict[str, dict[BlockKey, Rank]] = field(default_factory=dict)

    def add_own(
        self,
        origin: BlockKey,
        epoch: int,
        values: Iterable[float],
        sign: Callable[[bytes], bytes] | None = None,
    ) -> Report:
        """Set this device's next vector. Raises ValueError for one that other devices would refuse."""
        with np.errstate(over="ignore"):  # an infinity is refused below
            report = Report(origin, epoch, np.array(values, dtype=np.float32))
        if sign is not None:
            report = Report(origin, epoch, report.values, sign(report.signed_data()))
        if not self._sound(report):
            raise ValueError(f"{origin}: {report.values.shape} values, expected {self.length} finite ones")
        self._newest[origin] = report
        return report

    def on_report(self, peer: str, report: Report) -> bool:
        """Take a report from a neighbour. Returns whether it is new.

        A malformed or forged one is counted in `refused`.
        """
        if report.origin in self._forgotten:
            return False
        if not self._sound(report):
            self.refused += 1
            return False
        known = self._newest.get(report.origin)
        if known is not None and known.rank >= report.rank:
            self._mark_known(peer, report)
            return False
        if (known is None and len(self._newest) >= self.max_origins) or not self.verify(report):
            self.refused += 1
            return False
        self._newest[report.origin] = report
        self._mark_known(peer, report)
        return True

    def unsent_reports(self, peer: str) -> list[Report]:
        """The reports that `peer` is not known to have, in order of origin.

        From now on they count as known to it.
        """
        known = self._known_by.setdefault(peer, {})
        news = [self._newest[key] for key in sorted(self._newest)]
        news = [r for r in news if r.rank > known.get(r.origin, NOTHING) and r.origin.device != peer]
        for report in news:
            self._mark_known(peer, report)
        return news

    def resend_all(self, peer: str) -> None:
        """Send everything to `peer` again: messages to it may have been lost."""
        self._known_by.pop(peer, None)

    def forget_origin(self, origin: BlockKey) -> None:
        """The origin left, crashed or retired: drop its vector and refuse later ones."""
        self._forgotten[origin] = None
        _keep_newest(self._forgotten, MOST_NAMES)
        self._newest.pop(origin, None)
        for known in self._known_by.values():
            known.pop(origin, None)

    def keep_only(self, origins: Container[BlockKey]) -> None:
        """Forget all origins that are not in `origins`."""
        for origin in [key for key in self._newest if key not in origins]:
            self.forget_origin(origin)

    def missing(self, members: Iterable[BlockKey], epoch: int) -> list[BlockKey]:
        """Members without a report of `epoch` or later."""
        return [key for key in sorted(members) if key not in self._newest or self._newest[key].epoch < epoch]

    def mean(self, members: Iterable[BlockKey]) -> Mean | None:
        """The mean over those members that have a report; None if there is none.

        All devices get the same mean once all messages have arrived. Decisions that must agree everywhere
        wait until the reports of an epoch had time for every hop, and are taken before those of the next
        epoch are measured.
        """
        reports = [self._newest[key] for key in sorted(set(members)) if key in self._newest]
        if not reports:
            return None
        total = np.zeros(self.length, dtype=np.float64)
        digest = hashlib.blake2b(digest_size=16)
        for report in reports:
            total += report.values
            digest.update(report.signed_data())
        origins = tuple(report.origin for report in reports)
        oldest = min(report.epoch for report in reports)
        return Mean(total / len(reports), origins, oldest, digest.digest())

    def _mark_known(self, peer: str, report: Report) -> None:
        known = self._known_by.setdefault(peer, {})
        _keep_newest(self._known_by, MOST_NAMES)
        known[report.origin] = max(report.rank, known.get(report.origin, NOTHING))

    def _sound(self, report: Report) -> bool:
        values = report.values
        whole = values.dtype == np.float32 and values.shape == (self.length,) and report.epoch >= 0
        return whole and bool((np.abs(values) <= MAX_VALUE).all())  # False for NaN


def _keep_newest(entries: dict[Any, Any], most: int) -> None:
    while len(entries) > most:
        del entries[next(iter(entries))]
