"""Departure before the last round: a leave, a retirement, or the end of the run for all devices.

To one device, SIGTERM means "leave and be forgotten". `docker compose down` and similar commands send SIGTERM
to every device. So with `membership.leave_grace_s` a device first tells the others that it was told to stop.
A member that was not told so answers, signed, that it stays. The run is over, and nobody asks to be
forgotten, if all active members were told to stop, or if more than half were and at the end of the grace no
other one has said that it stays. Otherwise the device leaves. So one silent member does not turn the end of a
run into leaves, and one member that lies does not turn a leave into an end where another one stays (method
9).
"""

from __future__ import annotations

from collections.abc import Callable

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Status, Verify
from peers.errors import LEAVE_UNCONFIRMED
from peers.protocol.actions import Drop, Exit
from peers.protocol.membership import MembershipProtocol
from peers.protocol.phases import Phase
from peers.protocol.rounds import Rounds
from peers.protocol.state import SECOND, DeviceState
from transport.wire.messages import Stopping

TELLINGS = 4  # Stopping messages in one grace: a message may be lost on the radio
ANSWER_NS = SECOND // 4  # pause between two answers to one peer that this device stays
INSIST_NS, INSISTS = SECOND // 4, 8  # pause and number of repetitions of a last record without confirmation


class Departure:
    """Decides what a signal to end means. `sign`, `verify`: of Stopping messages, which others relay."""

    def __init__(
        self,
        state: DeviceState,
        membership: MembershipProtocol,
        rounds: Rounds,
        sign: Callable[[bytes], bytes],
        verify: Verify,
    ) -> None:
        self._state, self._membership, self._rounds = state, membership, rounds
        self._sign, self._verify = sign, verify
        self._grace_ns = int(state.config.membership.leave_grace_s * SECOND)
        self._stopping: set[BlockKey] = set()  # members that were told to stop
        self._staying: set[BlockKey] = set()  # members that have said that they stay
        self._answered_ns: dict[str, int] = {}  # when each peer was last told that this device stays
        self._going = ""  # "leave" or "retire" while this device waits for a confirmation
        self._insists = 0  # repetitions of the last record that are left
        self._grace_until_ns: int | None = None  # end of the leave grace; None: no grace has begun

    def signal(self, now: int, kind: str) -> None:
        """leave (SIGTERM), retire (SIGINT) or end (the launcher ends the run for all devices).

        After the last round each only ends the process.

        A second signal ends the wait for a confirmation. A leave after a retire is carried out, because it
        asks for more. Any second signal in the leave grace is a leave.
        """
        state = self._state
        if (self._going, kind) == ("retire", "leave"):
            self._depart(now, kind)
        elif self._going:
            self._end(self._going)
        elif state.phase is Phase.FINISH:
            self._rounds.end("finished")
        elif state.phase is Phase.GONE:
            state.act(Exit(0, "gone"))
        elif kind == "end":
            self._end_run(now)
        elif state.own is None:
            self._go_without_block(now, kind)
        elif kind == "leave" and self._grace_ns and self._grace_until_ns is None:
            self._grace_until_ns = now + self._grace_ns
            self._tell_stopping(now)
        else:
            self._depart(now, "leave" if self._grace_until_ns is not None else kind)

    def on_stopping(self, now: int, source: str, message: Stopping) -> None:
        """A member was told to stop, or says that it stays. Pass a new statement on once.

        Each member that was told to stop extends the own grace. A device that was not told so answers.
        """
        state, key = self._state, BlockKey(message.device, message.incarnation)
        said = self._staying if message.stays else self._stopping
        if key not in said:
            record = state.members.alive().get(key.device)
            record = record if record is not None and record.key == key else None
            statement = _statement(key, message.stays)
            if record is None or not self._verify(record.public, statement, message.signature):
                state.act(Drop("unknown" if record is None else "forged"))
                return
            said.difference_update({known for known in said if known.device == key.device})
            said.add(key)
            state.tell_all(message, but=source)
            if self._grace_until_ns is not None and not message.stays:
                self._grace_until_ns = now + self._grace_ns
        if not message.stays:
            self._answer(now, source)

    def _answer(self, now: int, source: str) -> None:
        """Say that this device stays: to all the first time, then to a peer that asks again."""
        state = self._state
        stays = self._grace_until_ns is None and state.phase not in (Phase.FINISH, Phase.GONE)
        if state.own is None or not stays or now < self._answered_ns.get(source, now):
            return
        key = state.own.key
        message = Stopping(key.device, key.incarnation, self._sign(_statement(key, True)), True)
        for peer in [source] if key in self._staying else state.greeted():
            state.tell(peer, message)
            self._answered_ns[peer] = now + ANSWER_NS
        self._staying.add(key)

    def on_last_call(self, now: int) -> None:
        """Repeat the Stopping message. At the end of the grace, end with the others or leave."""
        if self._grace_until_ns is not None and now < self._grace_until_ns:
            self._tell_stopping(now)
        elif self._state.phase in (Phase.FINISH, Phase.GONE):
            return
        elif self._most_stop():
            self._end_run(now)
        else:
            self._depart(now, "leave")

    def _most_stop(self) -> bool:
        """Whether more than half of the active members were told to stop, and no other one says it stays."""
        active = {record.key for record in self._state.members.active().values()}
        stopping = active & self._stopping
        for key in sorted(active - stopping):
            self._state.log("stays" if key in self._staying else "silent", peer=key.device)
        return 2 * len(stopping) > len(active) and not self._staying & (active - stopping)

    def on_insist(self, now: int) -> None:
        """Repeat the last records while a live neighbour has not confirmed them, at most INSISTS times."""
        state = self._state
        self._insists -= 1
        if self._insists <= 0 or not state.greeted():
            self._end(self._going)
            return
        self._membership.tell_unconfirmed()
        state.timers["insist"] = now + INSIST_NS

    def try_end(self, now: int) -> None:
        """After every event: end once the departure is confirmed or all live members were told to stop."""
        state = self._state
        if self._going and self._membership.all_confirm():
            self._end(self._going)
        if self._grace_until_ns is None or state.phase in (Phase.FINISH, Phase.GONE):
            return
        if all(record.key in self._stopping for record in state.members.active().values()):
            self._end_run(now)

    def _end_run(self, now: int) -> None:
        """The run is over for all devices before its last round: nobody asks to be forgotten."""
        state = self._state
        state.timers.pop("last_call", None)
        state.log("ended", round=state.round)
        if state.round >= 0:
            self._rounds.finish(now)
        else:
            self._end("ended")

    def _tell_stopping(self, now: int) -> None:
        """Tell all peers that this device was told to stop. Sign anew: the incarnation may have changed."""
        state = self._state
        if state.own is not None:
            key = state.own.key
            self._stopping.add(key)
            signature = self._sign(_statement(key, stays=False))
            state.tell_all(Stopping(key.device, key.incarnation, signature))
        state.timers["last_call"] = now + self._grace_ns // TELLINGS

    def _depart(self, now: int, kind: str) -> None:
        """Announce the departure and wait for a confirmation."""
        state = self._state
        status = Status.LEFT if kind == "leave" else Status.RETIRED
        state.log("leaving", kind=kind, round=state.round)
        self._membership.depart(status)
        if kind == "retire":
            state.export()
        state.enter(Phase.GONE)
        self._going, self._insists = kind, INSISTS
        state.timers["insist"] = now + INSIST_NS
        if not state.greeted():
            self._end(kind)

    def _go_without_block(self, now: int, kind: str) -> None:
        """A device that has no block yet may have left blocks behind in earlier lives."""
        state = self._state
        if kind == "leave" and (state.unconfirmed or self._membership.own_records()):
            self._depart(now, kind)
        else:
            state.act(Exit(0, "gone"))

    def _end(self, reason: str) -> None:
        """Say goodbye and exit. A leave that too few have confirmed has its own exit status."""
        state, self._going = self._state, ""
        self._membership.settle_confirmations()
        left = sorted(r.key for r in state.unconfirmed.values() if r.status is Status.LEFT)
        state.timers.pop("insist", None)
        self._rounds.say_farewell(reason, last=True)
        state.enter(Phase.GONE)
        if left and not self._is_last():
            kept = list(map(str, left))
            state.log("unconfirmed_leave", blocks=kept)
            few = f"too few devices have confirmed the leave of {', '.join(kept)}; it is saved"
            state.act(Exit(LEAVE_UNCONFIRMED, few))
        else:
            state.act(Exit(0, reason))

    def _is_last(self) -> bool:
        """Whether all other devices have left: then nobody holds a block that could be deleted."""
        state = self._state
        newest = map(state.members.newest, {record.device for record in state.members} - {state.me.device})
        return all(record is not None and record.status is Status.LEFT for record in newest)


def _statement(key: BlockKey, stays: bool) -> bytes:
    """The bytes that a device signs when it was told to stop, or when it stays."""
    return f"{'staying' if stays else 'stopping'} {key}".encode()
