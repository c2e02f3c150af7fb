"""Which owner keeps its slot against a claim that comes later, whatever the claim says about its age.

The Lamport time of a claim is the word of the claimant. A device that claims an early time would otherwise
take the slot of any other and have its block dropped. So each device remembers since when it knows that an
owner trains in a slot, and when it heard of a claim. An owner that had trained for SETTLED rounds when the
claim was heard keeps its slot.

An honest claim on the slot of such an owner is later anyway: the claimant knew of the owner, or learns of it
before it trains. The exception is a partition. There both sides may give one slot to two devices, and each
trains. If devices that were given up come back at about the time of the claim, only owners that had settled
MARGIN rounds before that count. Between the others the order of claims decides, which is the same on both
sides. All times here are rounds of the network, as this device knows them.
"""

from __future__ import annotations

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import PRESENT, Record, Status

SETTLED = 2  # rounds from the first training round of an owner until no later claim takes its slot
MARGIN = 50  # rounds that a partition may take to be noticed, and its end to be told to all


class SlotOwners:
    """What one device has observed of claims and of absences."""

    def __init__(self) -> None:
        self._trains: dict[BlockKey, tuple[int, int]] = {}  # slot, and the round since which the owner trains
        self._heard: dict[BlockKey, tuple[int, int, int]] = {}  # slot, claimed, round in which it was heard
        self._gone: dict[str, int] = {}  # devices that were given up, with the round
        self._absences: dict[str, tuple[int, int]] = {}  # the last absence: given up in, came back in

    def note(self, record: Record, round_: int) -> None:
        """A record of another device is new in the table."""
        key, claim = record.key, (record.slot, record.claimed)
        if self._heard.get(key, ())[:2] != claim:
            self._heard[key] = (*claim, round_)
        if record.since_round >= 0 and self._trains.get(key, (-1, 0))[0] != record.slot:
            self._trains[key] = record.slot, max(record.since_round, round_)
        if record.status is Status.CRASHED:
            self._gone.setdefault(record.device, round_)
        elif record.status in PRESENT and record.device in self._gone:
            self._absences[record.device] = self._gone.pop(record.device), round_

    def keeps(self, owner: Record, challenger: Record) -> bool:
        """Whether `owner` had settled when the claim of `challenger` was heard. Else their claims decide."""
        if challenger.key not in self._heard or owner.since_round < 0:
            return False
        slot, since = self._trains.get(owner.key, (owner.slot, owner.since_round))
        return slot == owner.slot and since + SETTLED <= self._until(challenger.key)

    def _until(self, challenger: BlockKey) -> int:
        """The round before which an owner must have settled to keep its slot against a challenger."""
        heard = self._heard[challenger][2]
        partitions = [gone for gone, back in self._absences.values() if abs(back - heard) <= MARGIN]
        return min([heard, *(gone - MARGIN for gone in partitions)])
