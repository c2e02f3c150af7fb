"""Slots without a coordinator: everyone picks one for itself, and two claims on one slot have one winner.

The earlier Lamport time wins, then the smaller device id; the loser takes another slot under a new
incarnation at B = 0, since its block means nothing in another basis (method 9).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coordinator_free.membership import Record


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
