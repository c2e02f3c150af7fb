"""Admission of membership records: which records of others may enter the table of this device.

A member can sign any number of records, in its own name and, without an allow-list, in invented names. The
table is bounded. A record can be refused without harm: gossip repeats it, so it enters once there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from coordinator_free.membership.signed_records import PRESENT, Record, Status
from peers.protocol.state import DeviceState

SignerOf = Callable[[str], bytes | None]
TABLE_ROOM = 1024  # records that a table holds, beside RECORDS_PER_SLOT for each slot
RECORDS_PER_SLOT = 16
LIVING_PER_SLOT = 2  # living members for each slot: claims can be in conflict for a while


class Admission:
    """Filters records before they are merged.

    `signer_of(device)`: the signing key to which an allow-list binds a device. None: there is no allow-list.
    b"": the device is not on the list.
    """

    def __init__(self, state: DeviceState, signer_of: SignerOf) -> None:
        self._state, self._signer_of = state, signer_of
        slots = state.config.adapter.max_devices
        self._most_records = TABLE_ROOM + RECORDS_PER_SLOT * slots
        self._most_living = LIVING_PER_SLOT * slots

    def admit(self, records: Iterable[Record]) -> tuple[list[Record], str]:
        """The records that may be merged, and the reason for which others may not ("": all may)."""
        members, admitted, reason = self._state.members, [], ""
        count, living = len(members), len(members.alive())
        for record in records:
            if not self._is_bound(record):
                reason = reason or "unbound"
                continue
            if self._has_wrong_keys(record):
                reason = reason or "malformed"
                continue
            if members.get(record.key) is None:
                lives = record.status in PRESENT
                newcomer = lives and record.device not in members.alive()
                if (newcomer and living >= self._most_living) or (
                    count >= self._most_records and not self._make_room(record)
                ):
                    reason = reason or "crowded"
                    continue
                count, living = min(count + 1, self._most_records), living + newcomer
            admitted.append(record)
        return admitted, reason

    def _is_bound(self, record: Record) -> bool:
        """Whether the key of a record is the one of its device."""
        me = self._state.me
        if record.device == me.device:
            return record.public == me.public
        listed = self._signer_of(record.device)
        if listed == b"":  # taken off the list: only what this device knew before may change
            known = self._state.members.newest(record.device)
            return known is not None and known.public == record.public
        return listed is None or record.public == listed

    def _has_wrong_keys(self, record: Record) -> bool:
        """Present incarnations have a mask key if reports are masked. Others may have ended before."""
        has_key = record.mask_key != b""
        return record.status in PRESENT and has_key != self._state.config.correction.masked

    def _make_room(self, record: Record) -> bool:
        """Remove the least credible record: an earlier incarnation that was withdrawn or crashed.

        Tombstones, the newest record of each device and the own records stay. Returns False without one.
        """
        members = self._state.members
        ended = (Status.WITHDRAWN, Status.CRASHED)
        for old in members:
            newest = members.newest(old.device)
            earlier = newest is not None and newest.key != old.key and old.device != self._state.me.device
            if earlier and old.status in ended and old.key not in self._state.blocks:
                members.remove(old.key)
                self._state.quarantine.forget(old.key)
                return True
        return False
