"""Slots without a coordinator: each device chooses its own slot, and each conflict has one winner.

If two devices claim one slot, the earlier Lamport time wins, then the smaller device id. An owner that has
trained in its slot for some time loses it to no later comer (slot_owners.py). The other device takes another
slot under a new incarnation and starts at B = 0, because a block is valid in its own basis only (method 9).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Record

EVERYBODY = "*"  # stands for all devices in place of a device id


class NoFreeSlot(Exception):
    """A block of the adapter holds each slot."""


def preferred(device: str, max_slots: int) -> int:
    """The slot that a device tries first: the number at the end of its id, so that d3 gets slot 3 if
    possible.
    """
    match = re.search(r"(\d+)$", device)
    number = int(match.group(1)) if match else zlib.crc32(device.encode())
    return number % max_slots


def choose(device: str, taken: set[int], used: set[int], max_slots: int) -> int:
    """A free slot: the first one from the preferred slot upwards (cyclic) that no device has ever used, else
    the first.

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


def by_claim(record: Record, claimed: int | None = None) -> tuple[int, int, str]:
    """The order of claims: who trains before who does not, then the earlier claim, then the smaller id.

    `claimed`: the Lamport time of the claim, if it counts as later than the record says.
    """
    return int(record.since_round < 0), record.claimed if claimed is None else claimed, record.device


def losers(living: Iterable[Record], order: Callable[[Record], Any] = by_claim) -> list[Record]:
    """The records whose slot another record holds by the order of claims, in order of device id."""
    best: dict[int, Record] = {}
    claims = sorted(living, key=order)
    for record in claims:
        best.setdefault(record.slot, record)
    return sorted((r for r in claims if best[r.slot] is not r), key=lambda r: r.device)


@dataclass(slots=True)
class _Vacancy:
    """A slot whose block was removed. `confirmed`: the devices that have reported the removal."""

    slot: int
    since_ns: int
    confirmed: set[str] = field(default_factory=set)


class Quarantine:
    """The slots of removed blocks. A new device may not take such a slot yet (method 9).

    A slot becomes free when every living device has confirmed that it no longer holds the block, or `term_ns`
    after this device learnt of the removal.
    """

    def __init__(self, term_ns: int) -> None:
        self._term_ns = term_ns
        self._vacant: dict[BlockKey, _Vacancy] = {}

    def add_vacancy(self, now: int, record: Record) -> bool:
        """The block of a record was removed. Returns False if this was known."""
        if record.key in self._vacant:
            return False
        self._vacant[record.key] = _Vacancy(record.slot, now)
        return True

    def forget(self, key: BlockKey) -> None:
        """The record of a removed block is forgotten."""
        self._vacant.pop(key, None)

    def confirm(self, now: int, key: BlockKey, device: str) -> bool:
        """`device` no longer holds the block; EVERYBODY: no device does.

        Returns whether this is new and still matters.
        """
        vacancy = self._vacant.get(key)
        if vacancy is None or device in vacancy.confirmed or self._over(now, vacancy):
            return False
        vacancy.confirmed.add(device)
        return True

    def confirmations(self, now: int, living: Collection[str]) -> list[tuple[str, int, str]]:
        """All known confirmations in order, as (block's device, block's incarnation, confirming device or
        EVERYBODY).
        """
        out = []
        for key, vacancy in sorted(self._vacant.items()):
            free = self._over(now, vacancy) or vacancy.confirmed.issuperset(living)
            out += [(*key, device) for device in ([EVERYBODY] if free else sorted(vacancy.confirmed))]
        return out

    def barred_slots(self, now: int, living: Collection[str]) -> set[int]:
        """The slots that no device may take yet."""
        open_ = [v for v in self._vacant.values() if not self._over(now, v)]
        return {v.slot for v in open_ if not v.confirmed.issuperset(living)}

    def _over(self, now: int, vacancy: _Vacancy) -> bool:
        return now >= vacancy.since_ns + self._term_ns or EVERYBODY in vacancy.confirmed
