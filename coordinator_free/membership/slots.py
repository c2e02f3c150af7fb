"""Slots without a coordinator: everyone picks one for itself, and two claims on one slot have one winner.

The earlier Lamport time wins, then the smaller device id; the loser takes another slot under a new
incarnation at B = 0, since its block means nothing in another basis (method 9).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.records import Record

EVERYBODY = "*"  # in the place of a device's id


class NoFreeSlot(Exception):
    """Every slot is held by a block of the adapter."""


def preferred(device: str, max_slots: int) -> int:
    """The slot a device asks for first: its id's trailing number, so that d3 holds slot 3 where it can."""
    match = re.search(r"(\d+)$", device)
    number = int(match.group(1)) if match else zlib.crc32(device.encode())
    return number % max_slots


def choose(device: str, taken: set[int], used: set[int], max_slots: int) -> int:
    """A free slot, from the preferred one upwards; one that nobody ever used before one that somebody left.

    Raises NoFreeSlot when all `max_slots` are taken.
    """
    first = preferred(device, max_slots)
    order = [(first + step) % max_slots for step in range(max_slots)]
    free = [slot for slot in order if slot not in taken]
    if not free:
        raise NoFreeSlot(
            f"{device}: all {max_slots} slots are taken; allowed: adapter.max_devices = {max_slots} blocks"
        )
    return next((slot for slot in free if slot not in used), free[0])


def losers(living: Iterable[Record]) -> list[Record]:
    """Those whose slot an earlier claim holds, in order of device id."""
    best: dict[int, Record] = {}
    lost = []
    for record in sorted(living, key=lambda r: (r.claimed, r.device)):
        if record.slot in best:
            lost.append(record)
        else:
            best[record.slot] = record
    return sorted(lost, key=lambda r: r.device)


@dataclass(slots=True)
class _Vacancy:
    """A slot that a block has left."""

    slot: int
    since_ns: int
    confirmed: set[str] = field(default_factory=set)


class Quarantine:
    """Slots whose block has gone. Nobody may take one before every living device has said that it holds the
    block no more, or before `term_ns` is over since this device heard of it (method 9)."""

    def __init__(self, term_ns: int) -> None:
        self._term_ns = term_ns
        self._vacant: dict[BlockKey, _Vacancy] = {}

    def add(self, now: int, record: Record) -> bool:
        """The block of a record has gone. False: that is known."""
        if record.key in self._vacant:
            return False
        self._vacant[record.key] = _Vacancy(record.slot, now)
        return True

    def confirm(self, now: int, key: BlockKey, device: str) -> bool:
        """A device holds this block no more; EVERYBODY: nobody does. Whether that is news that matters."""
        vacancy = self._vacant.get(key)
        if vacancy is None or device in vacancy.confirmed or self._over(now, vacancy):
            return False
        vacancy.confirmed.add(device)
        return True

    def told(self, now: int, living: Collection[str]) -> list[tuple[str, int, str]]:
        """All that is known: the block's device and incarnation and who holds it no more, in order."""
        out = []
        for key, vacancy in sorted(self._vacant.items()):
            free = self._over(now, vacancy) or vacancy.confirmed.issuperset(living)
            out += [(*key, device) for device in ([EVERYBODY] if free else sorted(vacancy.confirmed))]
        return out

    def barred(self, now: int, living: Collection[str]) -> set[int]:
        """Slots that nobody may take yet."""
        open_ = [v for v in self._vacant.values() if not self._over(now, v)]
        return {v.slot for v in open_ if not v.confirmed.issuperset(living)}

    def _over(self, now: int, vacancy: _Vacancy) -> bool:
        return now >= vacancy.since_ns + self._term_ns or EVERYBODY in vacancy.confirmed
