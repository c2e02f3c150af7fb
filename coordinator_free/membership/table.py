"""The membership table: it merges the same way in any order.

The table holds one record for each (device, incarnation). Merging two records of one incarnation keeps the
later status, and within a status the later Lamport time. The table is a join-semilattice: gossip may repeat,
change its order and loop (method 9).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership import slots
from coordinator_free.membership.records import PRESENT, Record, Status, Verify


class Change(NamedTuple):
    """What a merge did to one incarnation."""

    record: Record
    before: Record | None


class Membership:
    """One device's table. Every method is a pure step on it: no time, no sockets."""

    def __init__(self, verify: Verify, sign: Callable[[bytes], bytes]) -> None:
        self._records: dict[BlockKey, Record] = {}
        self._public: dict[str, bytes] = {}
        self._verify = verify
        self._sign = sign
        self._lamport = 0
        self.refused = 0
        self.changes = 0  # so far: what follows from the table is not computed again while it is the same
        self._seen: tuple[int, dict[str, Record], bytes] = (0, {}, _hash([]))

    # -- reading ---------------------------------------------------------------------------------
    def __iter__(self) -> Iterator[Record]:
        """Records in order of (device, incarnation): the same order everywhere."""
        return iter(self._records[key] for key in sorted(self._records))

    def get(self, key: BlockKey) -> Record | None:
        return self._records.get(key)

    def newest(self, device: str) -> Record | None:
        """The record of the device's highest incarnation."""
        return self._overview()[0].get(device)

    def alive(self) -> dict[str, Record]:
        """Devices whose highest incarnation is alive or has finished, in order of id."""
        return {d: r for d, r in self._overview()[0].items() if r.status in PRESENT}

    def active(self) -> dict[str, Record]:
        """Those of them that have not finished: they answer, or have crashed."""
        return {d: r for d, r in self._overview()[0].items() if r.status is Status.ALIVE}

    def evicted(self) -> dict[str, Record]:
        """Devices whose highest incarnation others gave up, in order of id: they may be cut off only."""
        return {d: r for d, r in self._overview()[0].items() if r.status is Status.CRASHED}

    def training(self, round_: int) -> tuple[str, ...]:
        """Devices that take part in a round, in order of id."""
        return tuple(d for d, r in self.alive().items() if 0 <= r.since_round <= round_)

    def blocks(self, keep_crashed: bool) -> dict[BlockKey, Record]:
        """Blocks that make up the adapter: of the living, the retired, and, if kept, the crashed.

        Not that of a gone device whose slot an earlier claim holds: it cannot move, and means nothing there.
        """
        held = self._held(keep_crashed)
        lost = {r.key for r in slots.losers(held.values())} - {r.key for r in self.alive().values()}
        return {key: record for key, record in held.items() if key not in lost}

    def tombstoned(self, key: BlockKey) -> bool:
        record = self._records.get(key)
        return record is not None and record.status is Status.LEFT

    def digest(self) -> bytes:
        """16 bytes: two devices whose digests are equal have equal tables."""
        return self._overview()[1]

    # -- changing --------------------------------------------------------------------------------
    def claim(
        self,
        device: str,
        address: str,
        public: bytes,
        max_slots: int,
        since_round: int,
        wish: int | None = None,
        barred: Collection[int] = (),
        keep_crashed: bool = False,
    ) -> Record:
        """A new incarnation of the own device on a slot: `wish` if nobody holds it, else none of `barred`.

        Raises slots.NoFreeSlot.
        """
        previous = self.newest(device)
        incarnation = 0 if previous is None else previous.incarnation + 1
        taken = {r.slot for r in self.blocks(keep_crashed).values()}
        slot = wish if wish is not None and wish not in taken else None
        if slot is None:
            slot = slots.choose(device, taken.union(barred), self._used(), max_slots)
        now = self._tick()
        return self._own(
            Record(device, incarnation, address, slot, now, now, public=public, since_round=since_round)
        )

    def amend(self, record: Record, **changes: Any) -> Record:
        """The owner's next record of the same incarnation: another status or first round."""
        return self._own(replace(record, lamport=self._tick(), signature=b"", **changes))

    def verdict(self, key: BlockKey) -> Change | None:
        """Somebody's word that a device crashed. None if there is nothing to say."""
        record = self._records.get(key)
        if record is None or record.status is not Status.ALIVE:
            return None
        return self._apply(replace(record, status=Status.CRASHED))

    def merge(self, records: Iterable[Record]) -> list[Change]:
        """Take in what another device said; what it changed, in order of (device, incarnation)."""
        changes = []
        for record in sorted(records, key=lambda r: (r.device, r.incarnation, r.status)):
            old = self._records.get(record.key)
            if old is not None and _rank(record) <= _rank(old):
                continue
            if not self._genuine(record):
                self.refused += 1
                continue
            self._lamport = max(self._lamport, record.lamport)
            changes.append(self._apply(record))
        return changes

    def slot_losers(self, keep_crashed: bool = False) -> list[Record]:
        """Living devices that must give their slot up to an earlier claim of a block of the adapter."""
        living = {r.key for r in self.alive().values()}
        return [r for r in slots.losers(self._held(keep_crashed).values()) if r.key in living]

    # -- inside ----------------------------------------------------------------------------------
    def _genuine(self, record: Record) -> bool:
        """Whether the owner made this record, or it is a verdict on one that the owner made."""
        if self._public.get(record.device, record.public) != record.public:
            return False  # another key under a known id
        return self._verify(record.public, record.signed_data(), record.signature)

    def _apply(self, record: Record) -> Change:
        self.changes += 1
        old = self._records.get(record.key)
        self._records[record.key] = record
        self._public.setdefault(record.device, record.public)
        return Change(record, old)

    def _own(self, record: Record) -> Record:
        signed = replace(record, signature=self._sign(record.signed_data()))
        self._apply(signed)
        return signed

    def _tick(self) -> int:
        self._lamport += 1
        return self._lamport

    def _held(self, keep_crashed: bool) -> dict[BlockKey, Record]:
        kept = {Status.RETIRED, Status.CRASHED} if keep_crashed else {Status.RETIRED}
        living = {r.key for r in self.alive().values()}
        return {r.key: r for r in self if r.key in living or r.status in kept}

    def _overview(self) -> tuple[dict[str, Record], bytes]:
        """The newest incarnation of each device, in order of id, and the hash of the table."""
        if self._seen[0] != self.changes:
            newest: dict[str, Record] = {}
            for record in self:
                newest[record.device] = record
            self._seen = self.changes, newest, _hash(self)
        return self._seen[1:]

    def _used(self) -> set[int]:
        return {r.slot for r in self}


def _hash(records: Iterable[Record]) -> bytes:
    state = [(r.device, r.incarnation, int(r.status), r.lamport) for r in records]
    return hashlib.blake2b(repr(state).encode(), digest_size=16).digest()


def _rank(record: Record) -> tuple[int, int]:
    return int(record.status), record.lamport
