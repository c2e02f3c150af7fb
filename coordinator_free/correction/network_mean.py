"""Means over the network with nobody in charge (method 6).

Every device relays the newest vector that it has of each origin, and adds them up in order of device id.
Averaging in place would be cheaper and loses mass when somebody crashes; here a crash costs nothing but the
crashed device's own vector, and that is dropped with its block. Messages may be lost, repeated, reordered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordinator_free.identifiers import BlockKey

Values = NDArray[np.float32]
Rank = tuple[int, bytes]
NOTHING: Rank = (-1, b"")


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """One device's vector. epoch: the round it was measured in; a later one replaces an earlier one.

    values: float32, as on the wire: the origin adds up the same numbers as everybody else.
    """

    origin: BlockKey
    epoch: int
    values: Values
    signature: bytes = b""

    def signed_data(self) -> bytes:
        head = repr((self.origin.device, self.origin.incarnation, self.epoch)).encode()
        return head + self.values.astype("<f4").tobytes()

    @property
    def rank(self) -> Rank:
        """Which of two reports of one origin stays; of two tales of one epoch the hash decides."""
        return self.epoch, hashlib.blake2b(self.signed_data(), digest_size=16).digest()


@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """Of the vectors of `origins`, in their order. digest: 16 bytes, equal where the same were added up.

    Two devices that compare digests know whether they decide from the same figures.
    """

    values: NDArray[np.float64]
    origins: tuple[BlockKey, ...]
    oldest: int
    digest: bytes


def _everyone(report: Report) -> bool:
    return True


@dataclass
class NetworkMean:
    """One device's collection. It holds `max_origins` vectors of `length` numbers at most.

    verify: whether the origin is a member and signed the report; a relay could otherwise make both up.
    """

    length: int
    max_origins: int
    verify: Callable[[Report], bool] = _everyone
    refused: int = 0
    _newest: dict[BlockKey, Report] = field(default_factory=dict)
    _forgotten: set[BlockKey] = field(default_factory=set)
    _known_by: dict[str, dict[BlockKey, Rank]] = field(default_factory=dict)

    def add_own(
        self,
        origin: BlockKey,
        epoch: int,
        values: Iterable[float],
        sign: Callable[[bytes], bytes] | None = None,
    ) -> Report:
        """This device's next vector. Raises ValueError for one that nobody would take."""
        with np.errstate(over="ignore"):  # an infinity is refused below
            report = Report(origin, epoch, np.array(values, dtype=np.float32))
        if sign is not None:
            report = Report(origin, epoch, report.values, sign(report.signed_data()))
        if not self._sound(report):
            raise ValueError(f"{origin}: {report.values.shape} values, expected {self.length} finite ones")
        self._newest[origin] = report
        return report

    def on_report(self, peer: str, report: Report) -> bool:
        """Take in what a neighbour sent. True: it is news here. Unsound or forged: counted and refused."""
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
        """What `peer` is not known to have, in order of origin; it is taken to have it from now on."""
        known = self._known_by.setdefault(peer, {})
        news = [self._newest[key] for key in sorted(self._newest)]
        news = [r for r in news if r.rank > known.get(r.origin, NOTHING) and r.origin.device != peer]
        for report in news:
            self._mark_known(peer, report)
        return news

    def resend_all(self, peer: str) -> None:
        """A neighbour that may have lost messages, or is gone: it is known everything again."""
        self._known_by.pop(peer, None)

    def forget_origin(self, origin: BlockKey) -> None:
        """The origin left, crashed or retired: its vector no longer counts, nor does any that still comes."""
        self._forgotten.add(origin)
        self._newest.pop(origin, None)
        for known in self._known_by.values():
            known.pop(origin, None)

    def keep_only(self, origins: Container[BlockKey]) -> None:
        """Drop all others."""
        for origin in [key for key in self._newest if key not in origins]:
            self.forget_origin(origin)

    def missing(self, members: Iterable[BlockKey], epoch: int) -> list[BlockKey]:
        """Members of whom nothing as new as `epoch` is here."""
        return [key for key in sorted(members) if key not in self._newest or self._newest[key].epoch < epoch]

    def mean(self, members: Iterable[BlockKey]) -> Mean | None:
        """Over those members of whom there is a vector; None if there is none.

        All devices get the same once all messages are in. A decision to be taken alike everywhere waits until
        the reports of an epoch had time for every hop, and is taken before those of the next are measured.
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
        known[report.origin] = max(report.rank, known.get(report.origin, NOTHING))

    def _sound(self, report: Report) -> bool:
        values = report.values
        whole = values.dtype == np.float32 and values.shape == (self.length,) and report.epoch >= 0
        return whole and bool(np.isfinite(values).all())
