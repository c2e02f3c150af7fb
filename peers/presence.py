"""What a device does about who is here: its claim, changes in the table, silence (method 3 and 9)."""

from __future__ import annotations

from coordinator_free.membership import Change, Key, Record, Status
from peers.actions import AddBlock, Drop, DropBlock, OwnBlock, Snapshot
from peers.meeting import Meeting
from peers.state import SECOND, DeviceState, State
from transport.messages import Gossip, Ping

MAX_LAMPORT = 1 << 48  # a table that is told more could never count on
GONE = {
    Status.LEFT: "leave",
    Status.RETIRED: "retire",
    Status.CRASHED: "crash",
    Status.WITHDRAWN: "moved",
}


class Presence:
    """Keeps the table of members, the blocks that follow from it and the own place in it."""

    def __init__(self, state: DeviceState, meeting: Meeting) -> None:
        self._state, self._meeting = state, meeting
        self._tick_ns = 0

    def start(self, now: int) -> None:
        self._tick_ns = now
        self._state.timers["heartbeat"] = now + self._period_ns()

    # -- the own place -----------------------------------------------------------------------------
    def claim(self, now: int, carry: Key | None = None) -> None:
        """A new incarnation of this device on a free slot; `carry`: the one whose values it goes on with."""
        state, me = self._state, self._state.me
        joins = state.network_round >= 0 or state.round >= 0
        since = -1 if joins and state.round < 0 else max(state.round, 0)
        wish = None if carry is None else self._slot_of(carry)
        slots = state.config.adapter.max_devices
        record = state.members.claim(me.device, me.address, me.public, slots, since, wish)
        if state.round < 0 and joins:
            state.phase = State.JOIN
        kept = carry if carry is not None and wish == record.slot else None
        state.own = record
        state.log("slot", incarnation=record.incarnation, slot=record.slot)
        state.act(OwnBlock(record.key, record.slot, kept))
        state.exchange.add(record.key)
        state.tell_all(state.gossip([record]))
        self._sync_blocks()
        self._meeting.connect_neighbours(now)

    def amend(self, record: Record) -> None:
        """The own record as it is from now on, told to all."""
        self._state.own = record
        self._state.tell_all(self._state.gossip([record]))

    def _slot_of(self, key: Key) -> int | None:
        record = self._state.members.get(key)
        return None if record is None else record.slot

    def _defend(self, now: int) -> None:
        """Refute a verdict on the own incarnation; give a lost slot up."""
        state = self._state
        if state.own is None or state.phase is State.GONE:
            return
        recorded, lost = state.members.get(state.own.key), state.slot_lost()
        if recorded is not None and recorded.status is Status.ALIVE and not lost:
            return
        old = state.own.key
        withdrawn = state.members.amend(state.own, status=Status.WITHDRAWN)
        state.tell_all(state.gossip([withdrawn]))
        state.log("lost_slot" if lost else "refuted", incarnation=old.incarnation)
        if not lost:
            self._meeting.greet_all()  # who believed the verdict has hung up
        self.claim(now, carry=None if lost else old)

    # -- changes -----------------------------------------------------------------------------------
    def on_gossip(self, now: int, source: str, gossip: Gossip) -> None:
        state = self._state
        try:
            records = [Record.from_dict(r) for r in gossip.records]
            if any(r.slot >= state.config.adapter.max_devices or r.lamport > MAX_LAMPORT for r in records):
                raise ValueError("a slot or a time that cannot be")
            if gossip.round >= state.config.round.count:
                raise ValueError("a round that cannot be")
        except (ValueError, TypeError):
            state.act(Drop("malformed"))
            return
        state.network_round = max(state.network_round, gossip.round)
        self._changed(now, state.members.merge(records), source)
        if gossip.reply:
            state.tell(source, state.gossip(state.members))
        if state.own is None:
            self.claim(now)

    def _changed(self, now: int, changes: list[Change], source: str | None) -> None:
        """Act on what a merge or a verdict changed, and pass it on."""
        if not changes:
            return
        state = self._state
        state.tell_all(state.gossip([c.record for c in changes]), but=source)
        self._defend(now)
        self._sync_blocks()
        for change in changes:
            self._follow(change)
        self._meeting.connect_neighbours(now)

    def _follow(self, change: Change) -> None:
        state, record = self._state, change.record
        if record.device == state.me.device:
            return
        newest = state.members.newest(record.device)
        if record.status is Status.ALIVE and (change.before is None or record.since_round >= 0):
            event = "peer_joined" if change.before is None else "peer_trains"
            state.log(event, peer=record.device, incarnation=record.incarnation, slot=record.slot)
            if record.since_round > 0:
                state.start_correction(record.since_round)
        elif record.status in GONE and newest is not None and newest.key == record.key:
            kind = GONE[record.status]
            state.log("peer_gone", peer=record.device, incarnation=record.incarnation, kind=kind)
            if record.status is not Status.WITHDRAWN:  # who moves to another slot is still there
                self._meeting.disconnect(record.device)
                state.start_correction(state.round)

    def _sync_blocks(self) -> None:
        """Make the held blocks those of the table: the only place where blocks come and go."""
        state = self._state
        wanted = state.members.blocks(keep_crashed=state.keep_crashed)
        for key in [k for k in state.blocks if k not in wanted]:
            self._drop_block(key, state.members.get(key))
        for key, record in wanted.items():
            own = state.own is not None and key == state.own.key
            alive = record.status is Status.ALIVE
            if key not in state.blocks and not own and not (alive and key.device == state.me.device):
                state.act(AddBlock(key, record.slot))
                state.exchange.add(key)
        state.blocks = wanted

    def _drop_block(self, key: Key, record: Record | None) -> None:
        state = self._state
        forgotten = record is not None and record.status in (Status.LEFT, Status.CRASHED)
        shown = forgotten and state.round >= 0 and state.me.snapshot_every
        if shown:
            state.act(Snapshot(state.round, f"before:{key.device}"))
        state.act(DropBlock(key, GONE.get(record.status, "moved") if record else "unknown"))
        state.exchange.drop(key)
        if shown:
            state.act(Snapshot(state.round, f"deleted:{key.device}"))

    # -- silence -----------------------------------------------------------------------------------
    def heard(self, now: int, source: str, incarnation: int) -> None:
        """A message of a peer. One that is held for dead is told so, so that it can refute."""
        state = self._state
        state.peers[source].heard_ns = now
        record = state.members.get(Key(source, incarnation))
        if record is not None and record.status is Status.CRASHED:
            state.tell(source, state.gossip([record]))

    def on_heartbeat(self, now: int) -> None:
        state, period = self._state, self._period_ns()
        limit = int(state.config.membership.crash_after_s * SECOND)
        stalled = now - self._tick_ns > max(4 * period, limit // 2)
        self._tick_ns = now
        state.timers["heartbeat"] = now + period
        self._meeting.greet_again(now)
        alive = state.members.alive()
        for name, peer in sorted(state.peers.items()):
            if stalled:  # it was this device that stood still: everyone else starts afresh
                peer.heard_ns = now
            if peer.greeted and not peer.done:
                state.tell(name, Ping(state.round, False))
            watched = name in alive and not peer.done and state.phase is not State.FINISH
            if watched and now - peer.heard_ns > limit:
                change = state.members.verdict(alive[name].key)
                state.log("suspected", peer=name, silent_s=(now - peer.heard_ns) / SECOND)
                self._changed(now, [change] if change else [], None)

    def _period_ns(self) -> int:
        return int(self._state.config.membership.heartbeat_s * SECOND)
