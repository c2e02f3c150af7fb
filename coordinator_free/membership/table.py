"""The membership table: merging gives the same result in any order.

The table holds one record for each (device, incarnation). A merge of two records of one incarnation keeps the
later status, and for equal status the later Lamport time. If an owner signed two mask keys for one time, the
greater one stays. The table is a join-semilattice: gossip may repeat, reorder and loop (method 9).
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership import slots
from coordinator_free.membership.signed_records import PRESENT, Record, Status, Verify, is_genuine
from coordinator_free.membership.slot_owners import SlotOwners
from coordinator_free.ranges import NAME_BYTES

JUMP = 1 << 16  # how far one accepted record moves the Lamport clock of its receiver at most


class _Overview(NamedTuple):
    """What follows from the records: the newest record of each device in order of id, and of those that live.

    `alive`: with those that have finished. `digest`: the hash of the table.
    """

    newest: Mapping[str, Record]
    alive: Mapping[str, Record]
    active: Mapping[str, Record]
    digest: bytes


class Change(NamedTuple):
    """The effect of a merge on one incarnation: the record now and the record before."""

    record: Record
    before: Record | None


class Membership:
    """The table of one device. No method waits or sends.

    `verify(public, data, signature)` checks Ed25519 signatures; `sign` signs for this device.
    """

    def __init__(
        self, verify: Verify, sign: Callable[[bytes], bytes], device: str = "", public: bytes = b""
    ) -> None:
        """`device`, `public`: the own id and key. Nobody else can claim this id here."""
        self._records: dict[BlockKey, Record] = {}
        self._order: list[BlockKey] = []  # the keys of the records, sorted
        self._hashes: dict[BlockKey, bytes] = {}  # of the records, for the digest
        self._public: dict[str, bytes] = {device: public} if public else {}
        self._owners = SlotOwners()
        self.network_round = -1  # latest round that any device has reached, for `SlotOwners`
        self._verify = verify
        self._sign = sign
        self._lamport = 0
        self.refused = 0
        self.changes = 0  # counts changes; derived values are computed again only after a change
        self._cached = _Overview({}, {}, {}, _digest([]))
        self._cached_for = 0  # the number of changes that `_cached` is of
        self._cached_losers: dict[tuple[int, int, bool], list[Record]] = {}

    # -- reading ---------------------------------------------------------------------------------
    def __iter__(self) -> Iterator[Record]:
        """The records in order of (device, incarnation), the same on all devices."""
        return iter([self._records[key] for key in self._order])

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: BlockKey) -> Record | None:
        return self._records.get(key)

    def newest(self, device: str) -> Record | None:
        """The record of the device's highest incarnation."""
        return self._overview().newest.get(device)

    def alive(self) -> Mapping[str, Record]:
        """Devices whose highest incarnation is alive or has finished, in order of id."""
        return self._overview().alive

    def active(self) -> Mapping[str, Record]:
        """Devices whose highest incarnation is alive and has not finished. They must answer probes."""
        return self._overview().active

    def evicted(self) -> dict[str, Record]:
        """Devices whose highest incarnation was declared crashed, in order of id.

        A partition may be the cause.
        """
        return {d: r for d, r in self._overview().newest.items() if r.status is Status.CRASHED}

    def training(self, round_: int) -> tuple[str, ...]:
        """Devices that take part in a round, in order of id."""
        return tuple(d for d, r in self.alive().items() if 0 <= r.since_round <= round_)

    def blocks(self, keep_crashed: bool) -> dict[BlockKey, Record]:
        """The blocks of the adapter: those of living and retired devices and, with `keep_crashed`, of crashed
        ones.

        A block of a departed device is left out if another claim holds its slot: it cannot move to another
        slot. So is the block of a device that claims the slot of an owner which keeps it (slot_owners.py).
        """
        held = self._held(keep_crashed)
        living = {r.key for r in self.alive().values()}
        gone = {r.key for r in self._losers(held, keep_crashed) if r.key not in living}
        return {k: r for k, r in held.items() if k not in gone and not self._has_lost(r, keep_crashed)}

    def tombstoned(self, key: BlockKey) -> bool:
        """Whether the owner of this block has left."""
        record = self._records.get(key)
        return record is not None and record.status is Status.LEFT

    def digest(self) -> bytes:
        """16 bytes: two devices whose digests are equal have equal tables."""
        return self._overview().digest

    def names(self, most: int) -> bytes:
        """The names of the first `most` records in one string: the first NAME_BYTES of each record's hash."""
        return b"".join(self._hashes[key][:NAME_BYTES] for key in self._order[:most])

    def unnamed(self, known: Collection[bytes]) -> list[Record]:
        """The records whose names are not among `known`, in order."""
        return [self._records[key] for key in self._order if self._hashes[key][:NAME_BYTES] not in known]

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
        mask_key: bytes = b"",
    ) -> Record:
        """Claim a slot for a new incarnation of the own device. Returns the signed record.

        The slot is `wish` if it is free, else one that is free and not in `barred`. Raises slots.NoFreeSlot.
        """
        previous = self.newest(device)
        incarnation = 0 if previous is None else previous.incarnation + 1
        held = self.blocks(keep_crashed).values()
        taken = {r.slot for r in held if not self._owners.keeps(device, r)}
        slot = wish if wish is not None and wish not in taken else None
        if slot is None:
            slot = slots.choose(device, taken.union(barred), self._used(), max_slots)
        now = self._tick()
        claimed = Record(device, incarnation, address, slot, now, now, public=public, mask_key=mask_key)
        return self._own(replace(claimed, since_round=since_round))

    def amend(self, record: Record, **changes: Any) -> Record:
        """Sign the next record of an own incarnation, with another status or first round."""
        self._lamport = max(self._lamport, record.lamport)
        return self._own(replace(record, lamport=self._tick(), signature=b"", **changes))

    def verdict(self, key: BlockKey) -> Change | None:
        """Mark an incarnation as crashed. None if it is unknown or not alive."""
        record = self._records.get(key)
        if record is None or record.status is not Status.ALIVE:
            return None
        return self._apply(replace(record, status=Status.CRASHED))

    def merge(self, records: Iterable[Record]) -> list[Change]:
        """Merge the records of another device. Returns the changes in order of (device, incarnation).

        A record whose signature is wrong, or whose claim is later than itself, is counted in `refused`. A
        record moves the own clock by JUMP at most, so that no member can drive it to the end of its range.
        Whether a record is accepted does not depend on the clock: tables must not depend on the order.
        """
        changes = []
        for record in sorted(records, key=lambda r: (r.device, r.incarnation, r.status)):
            old = self._records.get(record.key)
            if old is not None and _rank(record) <= _rank(old):
                continue
            if not is_genuine(record, self._public.get(record.device), self._verify):
                self.refused += 1
                continue
            self._lamport = max(self._lamport, min(record.lamport, self._lamport + JUMP))
            changes.append(self._apply(record))
        return changes

    def remove(self, key: BlockKey) -> None:
        """Forget a record. Only for a table that is full: gossip may bring the record back."""
        del self._records[key], self._hashes[key]
        self._order.remove(key)
        self.changes += 1

    def slot_losers(self, keep_crashed: bool = False) -> list[Record]:
        """Living devices that must give up their slot, because another claim holds it."""
        now = self.changes, self.network_round, keep_crashed
        if now not in self._cached_losers:
            living = {r.key for r in self.alive().values()}
            losers = self._losers(self._held(keep_crashed), keep_crashed)
            self._cached_losers = {now: [r for r in losers if r.key in living]}
        return self._cached_losers[now]

    # -- inside ----------------------------------------------------------------------------------
    def _apply(self, record: Record) -> Change:
        self.changes += 1
        key, old = record.key, self._records.get(record.key)
        if old is None:
            insort(self._order, key)
        self._records[key], self._hashes[key] = record, _hash(record)
        self._public.setdefault(record.device, record.public)
        self._owners.note(record, self.network_round)
        return Change(record, old)

    def _own(self, record: Record) -> Record:
        signed = replace(record, signature=self._sign(record.signed_data()))
        self._apply(signed)
        return signed

    def _tick(self) -> int:
        self._lamport += 1
        return self._lamport

    def _losers(self, held: Mapping[BlockKey, Record], keep_crashed: bool) -> list[Record]:
        """The held records that lose their slot, in order of device id.

        A device knows its own earlier records, so its claim is later than each of them, whatever it says.
        """
        least: dict[str, int] = {}
        claimed: dict[BlockKey, int] = {}
        for record in self:  # in order of incarnation
            claimed[record.key] = max(record.claimed, least.get(record.device, 0))
            least[record.device] = max(least.get(record.device, 0), record.lamport + 1)

        def order(record: Record) -> tuple[int, int, str]:
            return slots.by_claim(record, claimed[record.key])

        lost = [record for record in held.values() if self._has_lost(record, keep_crashed)]
        standing = [record for record in held.values() if record not in lost]
        return sorted([*lost, *slots.losers(standing, order)], key=lambda r: r.device)

    def _has_lost(self, record: Record, keep_crashed: bool) -> bool:
        return self._owners.lost(record, self.network_round, keep_crashed)

    def _held(self, keep_crashed: bool) -> dict[BlockKey, Record]:
        kept = {Status.RETIRED, Status.CRASHED} if keep_crashed else {Status.RETIRED}
        living = {r.key for r in self.alive().values()}
        return {r.key: r for r in self if r.key in living or r.status in kept}

    def _overview(self) -> _Overview:
        if self._cached_for != self.changes:
            newest = {record.device: record for record in self}
            alive = {device: record for device, record in newest.items() if record.status in PRESENT}
            active = {device: record for device, record in alive.items() if record.status is Status.ALIVE}
            digest = _digest(self._hashes[key] for key in self._order)
            self._cached_for, self._cached = self.changes, _Overview(newest, alive, active, digest)
        return self._cached

    def _used(self) -> set[int]:
        return {r.slot for r in self}


def _hash(record: Record) -> bytes:
    state = record.device, record.incarnation, int(record.status), record.lamport
    masks = (record.mask_key,) if record.mask_key else ()  # without masks the digests of earlier versions
    return hashlib.blake2b(repr((*state, *masks)).encode(), digest_size=16).digest()


def split_names(names: bytes) -> frozenset[bytes]:
    """The names in a string of `Membership.names`."""
    return frozenset(names[at : at + NAME_BYTES] for at in range(0, len(names), NAME_BYTES))


def _digest(hashes: Iterable[bytes]) -> bytes:
    return hashlib.blake2b(b"".join(hashes), digest_size=16).digest()


def _rank(record: Record) -> tuple[int, int, bytes]:
    return int(record.status), record.lamport, record.mask_key
