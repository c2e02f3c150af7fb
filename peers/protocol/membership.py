"""Membership at one device: the messages, claims and reactions around the membership table (method 3 and 9).

`coordinator_free/membership` holds the table itself: records, their order and the slots, without messages or
links. This module decides when to merge into that table, what to tell others, and which own slot to claim.
"""

from __future__ import annotations

from collections.abc import Iterable

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import PRESENT, Record, Status
from coordinator_free.membership.slots import NoFreeSlot
from coordinator_free.membership.table import Change
from peers.protocol.actions import Drop, OwnBlock, SaveLeave
from peers.protocol.admission import Admission
from peers.protocol.connections import Connections
from peers.protocol.exchange import ZERO
from peers.protocol.phases import Phase
from peers.protocol.replicas import GONE, Replicas
from peers.protocol.state import SECOND, DeviceState
from transport.security.mask_keys import MaskKey
from transport.wire.limits import MAX_GOSSIP
from transport.wire.messages import Gossip

GOING = (Status.LEFT, Status.RETIRED)
FREE_LOSSES = 3  # slots that a device may lose before it pauses, so that a start with conflicts is fast
MOST_PERIODS = 64  # the longest pause between two claims, in probe periods


class MembershipProtocol:
    """Maintains the membership table and the own record in it."""

    def __init__(
        self, state: DeviceState, connections: Connections, replicas: Replicas, admission: Admission
    ) -> None:
        self._state, self._connections, self._replicas = state, connections, replicas
        self._admission = admission
        self._trained: dict[str, int] = {}  # the newest incarnation of each device that began to train
        self._waits = False  # for a slot
        self._losses = 0  # slots lost in the last time; `_note_loss`
        self._lost_ns = self._pause_ns = 0  # the last loss, and the pause after it
        self._had_slot = False
        self._patience_ns: int | None = None  # end of the wait of a newcomer where all slots are taken

    # -- the own record ----------------------------------------------------------------------------
    def claim(self, now: int, carry: BlockKey | None = None, told: bool = False) -> None:
        """Claim a free slot under a new incarnation. `carry`: the own block that goes on with its values.

        A device waits while no slot is free, and after it has lost several. Raises NoFreeSlot after
        `settle_s` if all slots are taken by blocks and this device never had one. `told`: a message of a
        peer led to this. Its sender is not the cause, so the next try of `try_claim` raises.
        """
        state = self._state
        joins = state.network_round >= 0 or state.round >= 0
        if joins and state.round < 0 and state.me.resumes:  # the checkpoint is older than the run's blocks
            state.exchange.outdate()
        resumed = None if joins else state.resumed_slot
        wish = resumed if carry is None else self._slot_of(carry)
        since = -1 if joins and state.round < 0 else max(state.round, 0)
        barred = self._replicas.barred(now) if state.round < 0 else set()
        record = None if self._pauses(now) else self._new_record(now, since, wish, barred, told)
        if record is None and not self._waits:
            state.log("waits_for_slot", quarantined=sorted(barred))
        self._waits = record is None
        if record is None:
            return
        if state.round < 0 and joins:
            state.enter(Phase.JOIN)
        self._own_block(record, carry if carry is not None and wish == record.slot else None)
        earlier = [] if carry is None else [r for r in [state.members.get(carry)] if r is not None]
        state.tell_all(state.gossip([*earlier, record]))
        self._replicas.sync(now)
        self._connections.connect_wanted(now)

    def _own_block(self, record: Record, kept: BlockKey | None) -> None:
        """Start the own block on the claimed slot. `kept`: the block whose values it goes on with."""
        state = self._state
        state.own, self._had_slot = record, True
        state.log("slot", incarnation=record.incarnation, slot=record.slot)
        state.act(OwnBlock(record.key, record.slot, kept, kept is None and state.resumes(record)))
        state.exchange.add_block(record.key, ZERO if kept is None else max(state.round, 0))

    def _new_record(
        self, now: int, since: int, wish: int | None, barred: set[int], told: bool
    ) -> Record | None:
        state, me, slots = self._state, self._state.me, self._state.config.adapter.max_devices
        keep, mask_key = state.keep_crashed, MaskKey() if state.config.correction.masked else None
        public = b"" if mask_key is None else mask_key.public
        try:
            claim = me.device, me.address, me.public, slots, since, wish, barred, keep, public
            record, state.mask_key = state.members.claim(*claim), mask_key
            return record
        except NoFreeSlot:
            full = len({r.slot for r in state.members.blocks(keep).values()}) >= slots
            if full and not self._had_slot and now >= self._patient_until(now) and not told:
                raise
        return None

    def _note_loss(self, now: int) -> None:
        """Another device has the own slot. After FREE_LOSSES of them, each pause is twice the one before.

        Otherwise two devices for which a lying member leaves one slot would make incarnations without end.
        """
        period_ns = int(self._state.config.membership.probe_s * SECOND)
        if now - self._lost_ns > 2 * MOST_PERIODS * period_ns:
            self._losses = 0
        self._losses += 1
        beyond = self._losses - FREE_LOSSES
        self._pause_ns = min(2 ** (beyond - 1), MOST_PERIODS) * period_ns if beyond > 0 else 0
        self._lost_ns = now

    def _pauses(self, now: int) -> bool:
        """Whether this device has lost so many slots that it claims none yet."""
        return now < self._lost_ns + self._pause_ns

    def _patient_until(self, now: int) -> int:
        """How long a newcomer waits where all slots are taken: claims may be invented, or owners may go."""
        if self._patience_ns is None:
            self._patience_ns = now + int(self._state.config.membership.settle_s * SECOND)
        return self._patience_ns

    def try_claim(self, now: int) -> None:
        """Try again to claim a slot, if this device waits for one."""
        if self._waits and self._state.phase is not Phase.GONE:
            self.claim(now)

    def own_records(self) -> list[Record]:
        """The records of all incarnations of this device that it can change."""
        me = self._state.me
        return [r for r in self._state.members if (r.device, r.public) == (me.device, me.public)]

    def depart(self, status: Status) -> None:
        """Leave or retire. A leave also deletes the blocks of this device's earlier incarnations.

        All of them, whatever their status: a crash verdict may still be on its way, and a file of another
        device may hold an earlier block. The records of a leave are saved before anyone is told.
        """
        state, leaves = self._state, status is Status.LEFT
        going = self.own_records() if leaves else [r for r in [state.own] if r is not None]
        signed = [state.members.amend(r, status=status) for r in going if r.status is not Status.LEFT]
        pending = {k: r for k, r in state.unconfirmed.items() if r.status is Status.LEFT}
        state.unconfirmed = pending | {record.key: record for record in signed}
        state.confirmed_by.clear()
        if state.own is not None:
            state.own = state.members.get(state.own.key)
        if leaves:
            self._save_leave(confirmed=False)
            self._log_tombstones(signed)
        self.tell_unconfirmed()

    def restore_ended(self) -> None:
        """Take in the incarnations that ended before the run was interrupted: tombstones and frozen blocks.

        All devices that start together take in the same ones.
        """
        changes = self._state.members.merge(self._state.me.ended)
        self._log_tombstones(c.record for c in changes if c.record.status is Status.LEFT)

    def restore_wishes(self) -> None:
        """Take in the leaves of this device's earlier lives, before it joins under a new incarnation.

        A leave under an earlier key cannot enter the own table. It is told to the devices that know this key.
        """
        state, me = self._state, self._state.me
        wishes = [record for record in me.wishes if record.device == me.device]
        restored = [change.record for change in state.members.merge(wishes)]
        earlier = [record for record in wishes if record.public != me.public]
        state.unconfirmed.update({record.key: record for record in [*earlier, *restored]})
        self._log_tombstones(restored)

    def tell_unconfirmed(self) -> None:
        """Tell all peers the last records of this device that too few have confirmed."""
        state = self._state
        records = [record for _, record in sorted(state.unconfirmed.items())]
        for start in range(0, len(records), MAX_GOSSIP):
            state.tell_all(state.gossip(records[start : start + MAX_GOSSIP]))

    def _save_leave(self, confirmed: bool) -> None:
        """Save all leaves of this device, with those under an earlier key."""
        known = [*self.own_records(), *self._state.unconfirmed.values(), *self._wishes_of_earlier_keys()]
        left = {r.signature: r for r in known if r.status is Status.LEFT}
        self._state.act(SaveLeave(tuple(left.values()), confirmed))

    def _wishes_of_earlier_keys(self) -> list[Record]:
        me = self._state.me
        return [r for r in me.wishes if r.device == me.device and r.public != me.public]

    def _log_tombstones(self, records: Iterable[Record]) -> None:
        for record in records:
            self._state.log("tombstone", peer=record.device, incarnation=record.incarnation)

    def refute(self) -> None:
        """Answer a suspicion about this device with a newer own record. A withdrawn one stays so."""
        state = self._state
        if state.own is not None and state.phase is not Phase.GONE and not state.withdrawn():
            state.log("refuted", incarnation=state.own.incarnation)
            state.announce(state.members.amend(state.own))

    def _slot_of(self, key: BlockKey) -> int | None:
        record = self._state.members.get(key)
        return None if record is None else record.slot

    def _defend(self, now: int) -> None:
        """Claim a slot again after a crash verdict on this device or after another device got its slot."""
        state = self._state
        if state.own is None or state.phase is Phase.GONE or self._waits:
            return
        recorded, lost = state.members.get(state.own.key), state.slot_lost()
        if recorded is not None and recorded.status in PRESENT and not lost:
            return
        old = state.own.key
        withdrawn = state.members.amend(state.own, status=Status.WITHDRAWN)
        state.log("lost_slot" if lost else "came_back", incarnation=old.incarnation)
        if lost:
            self._note_loss(now)
            state.tell_all(state.gossip([withdrawn]))
            if state.round < 0:  # it may have to wait for a slot
                state.own = None
        self.claim(now, carry=None if lost else old)

    # -- changes of the table ----------------------------------------------------------------------
    def on_gossip(self, now: int, source: str, gossip: Gossip) -> None:
        """Merge records into the table and act on the changes."""
        state = self._state
        records = self._parse(gossip)
        if records is None:
            state.act(Drop("malformed"))
            return
        self._note_confirmations(source, records)
        records, refused = self._admission.admit(records)
        if refused and not records:
            state.act(Drop(refused))
            return
        if state.phase is Phase.GONE:
            self.on_leaves(now, records)
            return
        state.saw_round(gossip.round, source)
        refusals = state.members.refused
        changes = state.members.merge(records)
        if state.members.refused > refusals:  # for instance a record of an earlier run
            state.act(Drop("forged"))
        self._confirm_departures(source, records)
        self._act_on(now, changes, source)
        if gossip.reply and source in state.peers and self._may_reply(now, source):
            state.tell_table(now, source)
        if state.own is None and not self._waits and not self._seeks_the_run():
            self.claim(now, told=True)

    def _seeks_the_run(self) -> bool:
        """Whether a joiner has met only joiners so far. If they began alone, there would be two runs.

        It waits for a device that trains, `settle_s` at most.
        """
        state = self._state
        joins = not state.me.cohort and bool(state.me.seeds)
        return joins and state.network_round < 0 and "settle" in state.timers

    def _may_reply(self, now: int, source: str) -> bool:
        """Whether a peer may get the whole table again. Each of its requests costs only a few bytes."""
        pause_ns = int(self._state.config.membership.probe_s * SECOND) // 4
        return now - self._state.peers[source].table_ns >= pause_ns

    def _parse(self, gossip: Gossip) -> list[Record] | None:
        """The records of a message. None: one of them, or the round, is impossible."""
        config = self._state.config
        slots = config.adapter.max_devices
        try:
            records = [Record.from_dict(r) for r in gossip.records]
            last = config.round.count  # of a joiner that came after the last round
            impossible = any(r.slot >= slots or r.since_round > last for r in records)
        except (ValueError, TypeError):
            return None
        return None if impossible or gossip.round >= config.round.count else records

    def on_leaves(self, now: int, records: Iterable[Record]) -> None:
        """Take in the leaves of others that the testbed delivers, or that arrive after the own departure.

        A device that goes relays and confirms nothing more. It may have saved its adapter.
        """
        state, slots = self._state, self._state.config.adapter.max_devices
        others = [r for r in records if r.status is Status.LEFT and r.device != state.me.device]
        changes = state.members.merge(r for r in others if r.slot < slots)
        if state.phase is not Phase.GONE:
            self._act_on(now, changes, None)
        elif changes:
            self._log_tombstones(change.record for change in changes)
            if state.exported is not None:
                self._replicas.sync(now)

    def _note_confirmations(self, source: str, records: list[Record]) -> None:
        """Note that another device has the last records of this device, which must not be lost.

        Only the record itself, signature included, shows that it has arrived. A device that goes waits for
        more confirmations than it needs (`all_confirm`).
        """
        state = self._state
        confirmed = [r.key for r in records if r == state.unconfirmed.get(r.key)]
        for key in confirmed:
            state.confirmed_by.setdefault(key, set()).add(source)
        if confirmed and state.phase is not Phase.GONE:
            self.settle_confirmations()

    def _voters(self) -> set[str]:
        """The live neighbours, whose confirmations count."""
        return {*self._state.greeted()} & self._state.members.alive().keys()

    def all_confirm(self) -> bool:
        """Whether every live neighbour has confirmed every last record of this device, and at least one."""
        by, voters = self._state.confirmed_by, self._voters()
        return all(by.get(key) and by[key] >= voters for key in self._state.unconfirmed)

    def settle_confirmations(self) -> None:
        """Count the records as told that more than half of the live neighbours have confirmed.

        One neighbour can confirm a leave and not pass it on.
        """
        state, voters = self._state, self._voters()
        settled = [
            k for k, by in state.confirmed_by.items() if 2 * len(by & voters) > len(voters) or not voters
        ]
        told = [state.unconfirmed.pop(key) for key in settled]
        for key in settled:
            del state.confirmed_by[key]
        if any(r.status is Status.LEFT for r in told) and not any(
            r.status is Status.LEFT for r in state.unconfirmed.values()
        ):
            self._save_leave(confirmed=True)

    def _confirm_departures(self, source: str, records: list[Record]) -> None:
        """Confirm the departure of a sender by its own records, if the table has them now."""
        state = self._state
        for record in records:
            known = state.members.get(record.key)
            going = record.device == source and record.status in GOING
            if going and known is not None and known.status is record.status:
                state.tell(source, state.gossip([known]))

    def declare_crashed(self, now: int, device: str) -> None:
        """A device did not answer and did not refute the suspicion in time."""
        newest = self._state.members.newest(device)
        change = None if newest is None else self._state.members.verdict(newest.key)
        self._act_on(now, [] if change is None else [change], None)

    def on_evict(self, now: int) -> None:
        """The grace of a crashed device is over."""
        self._replicas.sync(now)

    def _act_on(self, now: int, changes: list[Change], source: str | None) -> None:
        """Act on the changes of a merge or a verdict, and tell them to all peers but their source."""
        if not changes:
            return
        state = self._state
        state.tell_all(state.gossip([c.record for c in changes]), but=source)
        self._defend(now)
        self._replicas.sync(now)
        for change in changes:
            self._follow(change)
        self._connections.connect_wanted(now)

    def _follow(self, change: Change) -> None:
        """Log the arrival or departure of another device and start the correction that it calls for."""
        state, record = self._state, change.record
        if record.device == state.me.device:
            return
        known = change.before is not None and change.before.status is record.status
        if known and record.status is not Status.ALIVE:
            return  # the owner has signed the same departure once more
        if record.status is Status.LEFT:
            self._log_tombstones([record])
        newest = state.members.newest(record.device)
        if record.status is Status.ALIVE and (change.before is None or _trains_now(change)):
            event = "peer_joined" if change.before is None else "peer_trains"
            state.log(event, peer=record.device, incarnation=record.incarnation, slot=record.slot)
            if record.since_round >= 0 and self._begins(record) and record.since_round > 0:
                state.start_correction(record.since_round)
        elif record.status in GONE and newest is not None and newest.key == record.key:
            kind = GONE[record.status]
            state.log("peer_gone", peer=record.device, incarnation=record.incarnation, kind=kind)
            if record.status in GOING:
                self._connections.part(record.device)
            if record.status in GOING or (kind == "crash" and state.keep_crashed):
                state.start_correction(state.round)  # other crashes: when the block is dropped

    def _begins(self, record: Record) -> bool:
        """Whether an incarnation trains for the first time. It may say so again and again."""
        first = record.incarnation > self._trained.get(record.device, -1)
        self._trained[record.device] = max(record.incarnation, self._trained.get(record.device, -1))
        return first


def _trains_now(change: Change) -> bool:
    return change.before is not None and change.before.since_round < 0 <= change.record.since_round
