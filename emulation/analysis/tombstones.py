"""The tombstones of a run: the blocks whose owners asked to be forgotten, from the records of the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Record as MembershipRecord
from emulation.analysis.records import Record, RunRecords
from peers.storage import leave_wishes


def find(run: RunRecords) -> list[BlockKey]:
    """All tombstones in order: those that devices recorded, and those of the wishes in their folders."""
    found = {block for device in run.devices for block in recorded(device, run.events[device])}
    return sorted(found.union(*(_wish(run.folder, device).blocks for device in run.devices)))


def unconfirmed(run: RunRecords) -> list[BlockKey]:
    """The blocks whose owners left, and no other device has confirmed that it knows of the leave."""
    pending = {r.key for r in pending_wishes(run.folder, run.devices)}
    known = {
        block
        for device in run.devices
        for block in recorded(device, run.events[device])
        if block.device != device
    }
    return sorted(pending - known)


def pending_wishes(folder: Path, devices: list[str]) -> list[MembershipRecord]:
    """The signed records of all wishes that are not marked as confirmed."""
    wishes = (_wish(folder, device) for device in devices)
    return [record for wish in wishes if not wish.confirmed for record in wish.records]


def _wish(folder: Path, device: str) -> leave_wishes.LeaveWish:
    return leave_wishes.read(folder / "devices" / device)


def recorded(device: str, events: list[Record]) -> Iterator[BlockKey]:
    """The blocks that the events of one device name as forgotten."""
    own = 0
    for event in events:
        kind = event["event"]
        if kind == "slot":
            own = int(event["incarnation"])
        elif (kind, event.get("kind")) == ("leaving", "leave"):
            yield BlockKey(device, own)
        elif kind == "tombstone" or (kind, event.get("kind")) == ("peer_gone", "leave"):
            yield BlockKey(str(event["peer"]), int(event["incarnation"]))
