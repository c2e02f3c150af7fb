"""Which blocks are held: those of the table and, for a grace, those of the crashed (method 3).

The only place where blocks come and go. A device that was given up by mistake comes back under a new
incarnation with the values that it has; who still holds them goes on with its copy until a newer one comes.
"""

from __future__ import annotations

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.records import Record, Status
from coordinator_free.membership.slots import EVERYBODY
from peers.protocol.actions import AddBlock, DropBlock, Snapshot
from peers.protocol.exchange import ZERO
from peers.protocol.state import SECOND, DeviceState, Phase
from transport.wire.limits import MAX_DELETED
from transport.wire.messages import Deleted

GONE = {
    Status.LEFT: "leave",
    Status.RETIRED: "retire",
    Status.CRASHED: "crash",
    Status.WITHDRAWN: "moved",
}


class Replicas:
    """Makes the held blocks those of the table, and knows which slots may be taken."""

    def __init__(self, state: DeviceState) -> None:
        self._state = state
        self._grace_ns = int(state.config.membership.grace_s * SECOND)
        self._evict_at: dict[BlockKey, int] = {}
        self._news: list[tuple[str, int, str]] = []  # deletions that this device has yet to tell

    def sync(self, now: int) -> None:
        """Hold what the table says, from now on."""
        state = self._state
        wanted = state.members.blocks(keep_crashed=state.keep_crashed)
        graced = {key: r for key, r in state.blocks.items() if key not in wanted and self._spared(now, r.key)}
        added = [r for key, r in wanted.items() if key not in state.blocks and not self._is_own(key)]
        carried = {record.key: self._carried(record) for record in added}
        for record in added:
            if carried[record.key] is not None:  # before what it goes on with is dropped
                self._add(record, carried[record.key])
        for key in [key for key in state.blocks if key not in wanted and key not in graced]:
            self._drop(key, state.members.get(key))
        for record in added:
            if carried[record.key] is None:
                self._add(record, None)
        state.blocks = {**wanted, **graced}
        self._note_departed(now)
        if graced:
            state.timers["evict"] = min(self._evict_at[key] for key in graced)

    def _spared(self, now: int, key: BlockKey) -> bool:
        """A crash verdict is carried out after a grace: the device may only have been out of reach."""
        newest = self._state.members.newest(key.device)
        if newest is None or newest.key != key or newest.status is not Status.CRASHED:
            return False
        return now < self._evict_at.setdefault(key, now + self._grace_ns)

    def _is_own(self, key: BlockKey) -> bool:
        return self._state.own is not None and key == self._state.own.key

    def _carried(self, record: Record) -> BlockKey | None:
        """The block that a device goes on with that refutes a verdict; not one that starts again at B = 0."""
        back = record.status is Status.ALIVE and record.since_round >= 0 and record.lamport == record.claimed
        if not back or self._state.round < 0:
            return None
        place, held = (record.device, record.slot), self._state.blocks.items()
        return max((k for k, r in held if (r.device, r.slot) == place and k < record.key), default=None)

    def _add(self, record: Record, carry: BlockKey | None) -> None:
        state = self._state
        resume = carry is None and state.resumes(record)
        state.act(AddBlock(record.key, record.slot, carry, resume))
        # In `newest` a copy counts once its owner has signed it: until it comes, this one has no version.
        state.exchange.add(record.key, 0 if resume and not state.mode.shared_versions else ZERO)
        # It is trained already: no copy is not B = 0.
        trained = record.since_round >= 0 and state.round >= 0
        if trained or (state.config.checkpoint.resume is not None and not resume):
            state.exchange.unknown |= set(state.exchange.parts(record.key))

    def _drop(self, key: BlockKey, record: Record | None) -> None:
        state = self._state
        forgotten = record is not None and record.status in (Status.LEFT, Status.CRASHED)
        shown = forgotten and state.round >= 0 and state.me.snapshot_every
        if shown:
            state.act(Snapshot(state.round, f"before:{key.device}"))
        left = record is not None and record.status is Status.LEFT  # a crash verdict may be wrong
        refit = state.config.correction.refit if left and state.round >= 0 else 0.0
        damping = 1.0
        if refit and state.own is not None:
            undamped = not state.exchange.refitted() and state.phase in (Phase.TRAIN, Phase.WAIT)
            state.exchange.replace(state.own.key)
            damping = state.damping() if undamped and state.exchange.refitted() else 1.0
        reason = GONE.get(record.status, "moved") if record else "unknown"
        state.act(DropBlock(key, reason, refit, damping))
        state.exchange.drop(key)
        if shown:
            state.act(Snapshot(state.round, f"deleted:{key.device}"))
        if record is not None and record.status is Status.CRASHED:
            state.start_correction(state.round)

    # -- slots ---------------------------------------------------------------------------------------
    def barred(self, now: int) -> set[int]:
        """Slots that no newcomer may take yet."""
        living = {*self._state.members.active()} - {self._state.me.device}
        return self._state.quarantine.barred_slots(now, living)

    def _note_departed(self, now: int) -> None:
        state, me = self._state, self._state.me.device
        for record in state.members:
            if record.key not in state.blocks and state.quarantine.add_vacancy(now, record):
                state.quarantine.confirm(now, record.key, me)
                self._news.append((*record.key, me))

    def on_deleted(self, now: int, message: Deleted) -> None:
        """What others hold no more; what is news of it is passed on."""
        state = self._state
        for device, incarnation, who in message.items:
            known = who == EVERYBODY or state.members.newest(who) is not None
            if known and state.quarantine.confirm(now, BlockKey(device, incarnation), who):
                self._news.append((device, incarnation, who))

    def tell_news(self) -> None:
        """In lumps: it is no hurry."""
        if self._news:
            self._state.tell_all(Deleted(self._news[:MAX_DELETED]))
            del self._news[:MAX_DELETED]
