"""Replicas: the blocks that this device holds, as the membership table says (method 3).

Only this module adds and drops blocks. The block of a crashed device stays for a grace period. A device that
was declared crashed by mistake returns under a new incarnation and keeps its values. Devices that still hold
the old block copy it to the new one, and use the copy until a newer version arrives.
"""

from __future__ import annotations

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Record, Status
from coordinator_free.membership.slots import EVERYBODY
from peers.protocol.actions import AddBlock, Confirmed, DropBlock, Snapshot
from peers.protocol.exchange import ZERO
from peers.protocol.phases import Phase
from peers.protocol.state import SECOND, DeviceState
from transport.wire.limits import MAX_DELETED
from transport.wire.messages import Deleted

GONE = {
    Status.LEFT: "leave",
    Status.RETIRED: "retire",
    Status.CRASHED: "crash",
    Status.WITHDRAWN: "moved",
}


MARGIN = 1  # foreign blocks beyond one a slot, for each slot


class Replicas:
    """Keeps the held blocks equal to those of the table, and tracks which slots are in quarantine."""

    def __init__(self, state: DeviceState) -> None:
        self._state = state
        self._grace_ns = int(state.config.membership.grace_s * SECOND)
        self._evict_at: dict[BlockKey, int] = {}  # ns: end of the grace of crashed devices' blocks
        self._news: list[tuple[str, int, str]] = []  # untold deletions: device, incarnation, who

    def sync(self, now: int) -> None:
        """Add and drop blocks until they match the table."""
        state = self._state
        wanted = state.members.blocks(keep_crashed=state.keep_crashed)
        graced = {key: r for key, r in state.blocks.items() if key not in wanted and self._in_grace(now, key)}
        self._limit(wanted, graced)
        added = [r for key, r in wanted.items() if key not in state.blocks and not self._is_own(key)]
        carried = {record.key: self._carried(record) for record in added}
        for record in added:
            if carried[record.key] is not None:  # copy a block before it is dropped
                self._add_block(record, carried[record.key])
        # A device that has lost its slot keeps its block until it has another one: it may be in a round.
        gone = [key for key in state.blocks if key not in wanted and key not in graced]
        dropped = [key for key in gone if not self._is_own(key)]
        for key in dropped:
            self._drop_block(key, state.members.get(key))
        for record in added:
            if carried[record.key] is None:
                self._add_block(record, None)
        own = {} if state.own is None else {state.own.key: state.own}
        state.blocks = {**own, **wanted, **graced}
        saved = {key for key in state.exported or () if not self._is_own(key)}
        if any(map(state.members.tombstoned, saved)):
            state.export()  # the adapter that is saved still has the block
        self._quarantine_departed(now)
        if graced:
            state.timers["evict"] = min(self._evict_at[key] for key in graced)

    def _limit(self, wanted: dict[BlockKey, Record], graced: dict[BlockKey, Record]) -> None:
        """Hold one block a slot, and MARGIN more a slot: blocks in a grace, and claims in conflict.

        The latest claims that have lost their slot go first: anyone can invent them. Then the grace is void.
        """
        state = self._state
        most = (1 + MARGIN) * state.config.adapter.max_devices
        excess = len(wanted) + len(graced) - most
        if excess > 0:
            lost = [r for r in state.members.slot_losers(state.keep_crashed) if not self._is_own(r.key)]
            for record in sorted(lost, key=lambda r: (r.claimed, r.device))[-excess:]:
                wanted.pop(record.key, None)
        for key in list(graced)[: max(0, len(wanted) + len(graced) - most)]:
            del graced[key]

    def _in_grace(self, now: int, key: BlockKey) -> bool:
        """Whether the block of a crashed device is kept for now: the device may only be out of reach."""
        newest = self._state.members.newest(key.device)
        if newest is None or newest.key != key or newest.status is not Status.CRASHED:
            return False
        return now < self._evict_at.setdefault(key, now + self._grace_ns)

    def _is_own(self, key: BlockKey) -> bool:
        return self._state.own is not None and key == self._state.own.key

    def _carried(self, record: Record) -> BlockKey | None:
        """After a refuted crash verdict, the held block whose values the device keeps; None: B = 0."""
        back = record.status is Status.ALIVE and record.since_round >= 0 and record.lamport == record.claimed
        if not back or self._state.round < 0:
            return None
        place, held = (record.device, record.slot), self._state.blocks.items()
        return max((k for k, r in held if (r.device, r.slot) == place and k < record.key), default=None)

    def _add_block(self, record: Record, carry: BlockKey | None) -> None:
        state = self._state
        resume = carry is None and state.resumes(record)
        state.act(AddBlock(record.key, record.slot, carry, resume))
        # In `newest` only a copy that its owner signed counts. A block of a checkpoint has no signed version.
        version = 0 if resume and not state.mode.shared_versions else ZERO
        state.exchange.add_block(record.key, version)
        # The owner has trained the block already, so B = 0 is not a copy of it.
        trained = record.since_round >= 0 and state.round >= 0
        if trained or (state.config.checkpoint.resume is not None and not resume):
            state.exchange.unknown |= set(state.exchange.parts(record.key))

    def _drop_block(self, key: BlockKey, record: Record | None) -> None:
        state = self._state
        forgotten = record is not None and record.status in (Status.LEFT, Status.CRASHED)
        shown = forgotten and state.round >= 0 and state.me.snapshot_every
        if shown:
            state.act(Snapshot(state.round, f"before:{key.device}"))
        refit, damping = self._start_refit(record)
        reason = GONE.get(record.status, "moved") if record else "unknown"
        project = forgotten and state.round >= 0 and state.config.correction.projection
        copies = tuple(state.exchange.drop_block(key))
        state.act(DropBlock(key, reason, refit, damping, copies, project))
        if shown:
            state.act(Snapshot(state.round, f"deleted:{key.device}"))
        if record is not None and record.status is Status.CRASHED:
            state.start_correction(state.round)

    def _start_refit(self, record: Record | None) -> tuple[float, float]:
        """The share of a deleted block that the own block takes over, and the damping that goes with it.

        Only for a leave: a crash verdict may be wrong.
        """
        state = self._state
        left = record is not None and record.status is Status.LEFT
        refit = state.config.correction.refit if left and state.round >= 0 else 0.0
        damping = 1.0
        if refit and state.own is not None:
            undamped = not state.exchange.refitted() and state.phase in (Phase.TRAIN, Phase.WAIT)
            state.exchange.start_refit(state.own.key)
            damping = state.damping() if undamped and state.exchange.refitted() else 1.0
        return refit, damping

    # -- slots in quarantine -------------------------------------------------------------------------
    def barred(self, now: int) -> set[int]:
        """Slots that no newcomer may claim yet."""
        living = {*self._state.members.active()} - {self._state.me.device}
        return self._state.quarantine.barred_slots(now, living)

    def _quarantine_departed(self, now: int) -> None:
        """Put the slots of dropped blocks into quarantine and confirm that this device dropped them."""
        state, me = self._state, self._state.me.device
        for record in state.members:
            if record.key not in state.blocks and state.quarantine.add_vacancy(now, record):
                state.quarantine.confirm(now, record.key, me)
                self._add_news(record.key, me)

    def on_deleted(self, now: int, source: str, message: Deleted) -> None:
        """Other devices have deleted blocks. What is new is passed on by `tell_news`."""
        state = self._state
        for device, incarnation, who in message.items:
            known = who == EVERYBODY or state.members.newest(who) is not None
            if known and state.quarantine.confirm(now, BlockKey(device, incarnation), who):
                self._add_news(BlockKey(device, incarnation), who)

    def _add_news(self, key: BlockKey, who: str) -> None:
        self._news.append((*key, who))
        if self._state.config.membership.receipts:
            self._state.act(Confirmed(key, who))

    def tell_news(self) -> None:
        """Tell all peers the deletions that they may not know yet, about once a probe period."""
        if self._news:
            self._state.tell_all(Deleted(self._news[:MAX_DELETED]))
            del self._news[:MAX_DELETED]
