"""Means over the network without a coordinator (method 6).

Every device relays the newest vector that it has of each origin, and sums them in order of device id.
Averaging in place would be cheaper, but loses mass when a device crashes. Here a crash costs only the vector
of the crashed device, which is dropped with its block. Messages may be lost, repeated and reordered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator_free.correction.masking import DIGEST_BYTES, Cohort, Numbers
from coordinator_free.identifiers import BlockKey

Values = NDArray[np.float32] | Numbers
Rank = tuple[int, bytes]
MAX_VALUE = 1e30  # of a report: larger values would overflow in the sums and products of the residuals
MOST_NAMES = 1024  # origins and peers that are remembered
NOTHING: Rank = (-1, b"")


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """One device's vector. `epoch`: the round of its measurement; a later one replaces an earlier one.

    `values`: float32, as on the wire, so that the origin sums the same numbers as all other devices. In a
    masked report: uint64, and `cohort` is the digest of the devices whose reports are added (masking.py).
    """

    origin: BlockKey
    epoch: int
    values: Values
    signature: bytes = b""
    cohort: bytes = b""

    def packed(self) -> bytes:
        """The values for the wire, after the digest of the cohort."""
        return self.cohort + self.values.astype("<u8" if self.cohort else "<f4").tobytes()

    def signed_data(self) -> bytes:
        """The bytes that the origin signs."""
        head = repr((self.origin.device, self.origin.incarnation, self.epoch)).encode()
        return head + self.packed()

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
    `masked`: whether all reports are masked. A network never mixes the two.
    """

    length: int
    max_origins: int
    verify: Callable[[Report], bool] = _everyone
    refused: int = 0
    masked: bool = False
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
        report = Report(origin, epoch, self.checked(origin, values))
        if sign is not None:
            report = replace(report, signature=sign(report.signed_data()))
        self._newest[origin] = report
        return report

    def add_own_masked(
        self, origin: BlockKey, cohort: Cohort, values: Numbers, sign: Callable[[bytes], bytes]
    ) -> None:
        """Set this device's masked vector of a cohort."""
        report = Report(origin, cohort.epoch, values, cohort=cohort.digest)
        self._newest[origin] = replace(report, signature=sign(report.signed_data()))

    def checked(self, origin: BlockKey, values: Iterable[float]) -> NDArray[np.float32]:
        """The values of this device as float32. Raises ValueError if other devices would refuse them."""
        with np.errstate(over="ignore"):  # an infinity is refused below
            found = np.array(values, dtype=np.float32)
        if found.shape != (self.length,) or not _in_range(found):
            raise ValueError(f"{origin}: {found.shape} values, expected {self.length} finite ones")
        return found

    def unpack(self, origin: BlockKey, epoch: int, packed: bytes, signature: bytes) -> Report | None:
        """A report from the wire (`Report.packed`); None for another number of bytes."""
        digest, kind = (DIGEST_BYTES, "<u8") if self.masked else (0, "<f4")
        if len(packed) != digest + self.length * np.dtype(kind).itemsize:
            return None
        values = np.frombuffer(packed, dtype=kind, offset=digest).astype(kind[1:])
        return Report(origin, epoch, values, signature, packed[:digest])

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

    def keep_only(self, origins: Container[BlockKey], living: Container[BlockKey] = ()) -> None:
        """Forget all origins that are not in `origins`. Those in `living` may report again."""
        for origin in [key for key in self._newest if key not in origins]:
            self.forget_origin(origin)
            if origin in living:
                del self._forgotten[origin]

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

    def missing_of(self, cohort: Cohort) -> list[BlockKey]:
        """Members of a cohort without a masked report of it."""
        found = {key: self._newest[key] for key in cohort.mask_keys if key in self._newest}
        wanted = cohort.epoch, cohort.digest
        there = {key for key, report in found.items() if (report.epoch, report.cohort) == wanted}
        return sorted(cohort.mask_keys.keys() - there)

    def masked_sum(self, cohort: Cohort) -> Numbers | None:
        """The sum of a cohort's reports modulo 2^64, in which no mask is left; None if one is missing."""
        if self.missing_of(cohort):
            return None
        reports = (self._newest[key].values.astype(np.uint64) for key in cohort.mask_keys)
        return sum(reports, np.zeros(self.length, dtype=np.uint64))

    def _mark_known(self, peer: str, report: Report) -> None:
        known = self._known_by.setdefault(peer, {})
        _keep_newest(self._known_by, MOST_NAMES)
        known[report.origin] = max(report.rank, known.get(report.origin, NOTHING))

    def _sound(self, report: Report) -> bool:
        values, kind = report.values, np.uint64 if self.masked else np.float32
        whole = values.dtype == kind and values.shape == (self.length,) and report.epoch >= 0
        if self.masked:  # every number is possible
            return whole and len(report.cohort) == DIGEST_BYTES
        return whole and not report.cohort and _in_range(values)


def _in_range(values: Values) -> bool:
    return bool((np.abs(values) <= MAX_VALUE).all())  # False for NaN


def _keep_newest(entries: dict[Any, Any], most: int) -> None:
    while len(entries) > most:
        del entries[next(iter(entries))]
