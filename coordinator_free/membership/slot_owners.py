"""Which owner keeps its slot against a claim that comes later, whatever the claim says about its age.

The Lamport time of a claim is the word of the claimant. A device that claims an early time would otherwise
take the slot of any other and have its block dropped. So each device remembers since when it knows that an
owner trains in a slot, and when it heard of a claim. A claim on a slot is lost if, when it was heard, another
device held the slot and had trained in it for SETTLED rounds.

- The next incarnation of a device in the same slot goes on with the claim of the earlier one. A crash verdict
  about an owner therefore takes nothing from it.
- A lost claim stays lost while the owner is away, for MARGIN rounds. An owner that returns finds its slot.
- An owner that was away for more than SETTLED rounds comes back with a new claim if another device has
  claimed its slot meanwhile. This holds where most devices are present.

An honest claim on the slot of such an owner is later anyway: the claimant knew of the owner, or learns of it
before it trains. The exception is a partition. There both sides may give one slot to two devices, and each
trains. So if a claimant was given up itself and comes back with the claim, only owners that had settled
MARGIN rounds before it was given up are safe. A claimant that nobody here knew may have joined the other side
of a partition. For it, the absence of any other device than the owner counts if it lasted longer than
SETTLED rounds: a device that a false verdict names is back at once. If most devices had been given up here
for so long, the other side is the larger one, and no owner is safe from its newcomers. In these cases the
order of claims decides, which is the same on both sides. All times here are rounds of the network, as this
device knows them.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator_free.membership.signed_records import PRESENT, Record, Status

SETTLED = 2  # rounds from the first training round of an owner until no later claim takes its slot
MARGIN = 50  # rounds that a partition may take to be noticed, and its end to be told to all
HOLDING = (*PRESENT, Status.RETIRED)


@dataclass(slots=True)
class _End:
    """The end of a claim: its place in the order of observations, its round, and whether it is a verdict."""

    order: int
    round: int
    crash: bool


@dataclass(slots=True)
class _Claim:
    """The claim of one device on one slot, over all its incarnations in that slot."""

    incarnation: int
    claimed: int  # Lamport time
    heard: int  # round in which this device heard of the claim
    order: int  # place in the order of observations
    known: bool  # the device was known before the round in which the claim was heard
    before: int  # only owners that had settled by this round keep the slot against the claim
    since: int | None = None  # round since which it trains in the slot
    trains: bool = False
    retired: bool = False
    end: _End | None = None


class SlotOwners:
    """What one device has observed of claims and of absences. The own claims are observed too."""

    def __init__(self) -> None:
        self._claims: dict[int, dict[str, _Claim]] = {}  # by slot and device
        self._newest: dict[str, int] = {}  # newest incarnation of each device
        self._first: dict[str, int] = {}  # round in which this device first heard of each device
        self._present: set[str] = set()  # devices that live
        self._gone: dict[str, int] = {}  # devices that are given up, with the round
        self._absences: dict[str, tuple[int, int]] = {}  # the last absence: given up in, came back in
        self._order = 0

    def note(self, record: Record, round_: int) -> None:
        """A record is new in the table."""
        self._order += 1
        known = self._first.setdefault(record.device, round_) < round_
        gone = self._gone.get(record.device)
        if record.incarnation >= self._newest.get(record.device, 0):
            self._newest[record.device] = record.incarnation
            self._note_presence(record, round_)
            self._end_other_claims(record, round_)
        of_slot = self._claims.setdefault(record.slot, {})
        claim = of_slot.get(record.device)
        if claim is not None and record.incarnation < claim.incarnation:
            return
        if claim is None or record.claimed < claim.claimed or self._is_replaced(record, claim, round_):
            before = round_ if gone is None else gone - MARGIN
            if not known and self._most_are_gone(round_):
                before = -1
            claim = _Claim(record.incarnation, record.claimed, round_, self._order, known, before)
            of_slot[record.device] = claim
        self._update(claim, record, round_)

    def lost(self, challenger: Record, round_: int, keep_crashed: bool) -> bool:
        """Whether another device held the slot and had settled when the claim of `challenger` was heard."""
        of_slot = self._claims.get(challenger.slot, {})
        claim = of_slot.get(challenger.device)
        return claim is not None and any(
            device != challenger.device
            and owner.trains
            and self._held(owner, claim, round_, keep_crashed)
            and self._settled(device, owner, claim)
            for device, owner in of_slot.items()
        )

    def keeps(self, device: str, challenger: Record) -> bool:
        """Whether `device` had settled in the slot of `challenger` when the claim of it was heard."""
        of_slot = self._claims.get(challenger.slot, {})
        owner, claim = of_slot.get(device), of_slot.get(challenger.device)
        return owner is not None and claim is not None and self._settled(device, owner, claim)

    def _held(self, owner: _Claim, claim: _Claim, round_: int, keep_crashed: bool) -> bool:
        """Whether the owner holds the slot, or held it when the claim was heard and may still return."""
        end = owner.end
        if end is None or (end.crash and keep_crashed):
            return True
        return end.order > claim.order and round_ - end.round <= MARGIN

    def _settled(self, device: str, owner: _Claim, claim: _Claim) -> bool:
        """Whether an owner had trained for SETTLED rounds before a claim that may be from a partition."""
        until = claim.before
        if not claim.known:
            until = min([until, *(gone - MARGIN for gone in self._partitions(device, claim))])
        return owner.since is not None and owner.since + SETTLED <= until

    def _partitions(self, owner: str, claim: _Claim) -> list[int]:
        """When other devices than the owner were given up that were long absent at the time of a claim."""
        return [
            gone
            for device, (gone, back) in self._absences.items()
            if device != owner and back - gone > SETTLED and gone <= claim.heard <= back + MARGIN
        ]

    def _most_are_gone(self, round_: int) -> bool:
        """Whether most devices known before this round have been given up for more than SETTLED rounds."""
        members = [d for d in {*self._present, *self._gone} if self._first[d] < round_]
        gone = [d for d in members if round_ - self._gone.get(d, round_) > SETTLED]
        return 2 * len(gone) > len(members)

    def _is_replaced(self, record: Record, claim: _Claim, round_: int) -> bool:
        """Whether an owner comes back after a long absence in which another device has claimed its slot."""
        end = claim.end
        if end is None or record.status not in HOLDING or round_ - end.round <= SETTLED:
            return False
        others = self._claims[record.slot].values()
        return not self._most_are_gone(round_) and any(
            other.order > end.order and other.trains and other.end is None for other in others
        )

    def _update(self, claim: _Claim, record: Record, round_: int) -> None:
        claim.incarnation, claim.trains = record.incarnation, record.since_round >= 0
        claim.retired = record.status is Status.RETIRED
        if claim.trains and claim.since is None:
            claim.since = max(record.since_round, round_)
        if record.status in HOLDING:
            claim.end = None
        else:
            self._end(claim, round_, record.status is Status.CRASHED)

    def _end(self, claim: _Claim, round_: int, crash: bool) -> None:
        if claim.end is None:
            claim.end = _End(self._order, round_, crash)
        claim.end.crash = crash

    def _note_presence(self, record: Record, round_: int) -> None:
        device = record.device
        self._present.discard(device)
        if record.status is Status.CRASHED:
            self._gone.setdefault(device, round_)
        elif record.status in PRESENT:
            self._present.add(device)
            if device in self._gone:
                self._absences[device] = self._gone.pop(device), round_
        elif record.status in (Status.LEFT, Status.RETIRED):
            self._gone.pop(device, None)

    def _end_other_claims(self, record: Record, round_: int) -> None:
        """A device that claims a slot gives up its claims on other slots, but for retired blocks."""
        for slot, of_slot in self._claims.items():
            claim = of_slot.get(record.device)
            if slot != record.slot and claim is not None and not claim.retired:
                self._end(claim, round_, crash=False)
