"""How a device goes before its last round: forgotten, retired, or with everyone else at the end of the run.

`docker compose down` and its like send every device the SIGTERM that to one device means "leave and be
forgotten". So with a grace a device first asks around: it says that it was told to stop, and if all who live
say the same, the run is over and nobody asks to be forgotten (method 9). One who does not say so is enough
to make it a leave: when in doubt, the one that was told to go is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.records import Status, Verify
from peers.protocol.actions import Drop, Exit, Export
from peers.protocol.membership import MembershipProtocol
from peers.protocol.rounds import Rounds
from peers.protocol.state import SECOND, DeviceState, Phase
from transport.wire.messages import Stopping

TELLINGS = 4  # in one grace: on the air a message may be lost
INSIST_NS, INSISTS = SECOND // 4, 8  # so often a last word is repeated where nobody has confirmed it


class Departure:
    """Decides what a signal to end means."""

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
        self._stopping: set[BlockKey] = set()  # who has said so
        self._going, self._insists = "", 0  # the signal that is carried out, once somebody has confirmed it
        self._until_ns: int | None = None  # when asking around ends; None: nobody asked this device to go

    def signal(self, now: int, kind: str) -> None:
        """leave (SIGTERM) or retire (SIGINT). After the last round either is only an exit.

        A second one does not wait for anybody's confirmation, but a leave after a retire asks for more. A
        retire while this device asks around is that second one: who was to be forgotten is.
        """
        state = self._state
        if (self._going, kind) == ("retire", "leave"):
            state.heard = False
            self._depart(now, kind)
        elif self._going:
            self._go(self._going)
        elif state.phase in (Phase.FINISH, Phase.GONE) or state.own is None:
            if state.phase is Phase.FINISH:
                self._rounds.end("finished")
            else:
                state.act(Exit(0, "gone"))
        elif kind == "leave" and self._grace_ns and self._until_ns is None:  # asked twice, it is meant
            self._until_ns = now + self._grace_ns
            self._tell(now)
        else:
            self._depart(now, "leave" if self._until_ns is not None else kind)

    def heard(self, now: int, source: str, message: Stopping) -> None:
        """Another was told to stop; its word is passed on once."""
        state, key = self._state, BlockKey(message.device, message.incarnation)
        if key in self._stopping:
            return
        record = state.members.get(key)
        if record is None or not self._verify(record.public, _word(key), message.signature):
            state.act(Drop("unknown" if record is None else "forged"))
            return
        self._stopping.add(key)
        state.tell_all(message, but=source)
        if self._until_ns is not None:
            self._until_ns = now + self._grace_ns

    def on_last_call(self, now: int) -> None:
        """Say it once more, or go: somebody stays."""
        if self._until_ns is not None and now < self._until_ns:
            self._tell(now)
        elif self._state.phase not in (Phase.FINISH, Phase.GONE):
            self._depart(now, "leave")

    def on_insist(self, now: int) -> None:
        """Nobody has confirmed yet that this device goes: say it again, but not for ever."""
        state = self._state
        self._insists -= 1
        if self._insists <= 0 or state.own is None or not state.greeted():
            self._go(self._going)
            return
        state.announce(state.own)
        state.timers["insist"] = now + INSIST_NS

    def try_end(self, now: int) -> None:
        """The run is over once everyone alive was told to stop."""
        state = self._state
        if self._going and state.heard:
            self._go(self._going)
        if self._until_ns is None or state.phase in (Phase.FINISH, Phase.GONE):
            return
        if all(record.key in self._stopping for record in state.members.active().values()):
            state.timers.pop("last_call", None)
            state.log("ended", round=state.round)
            if state.round >= 0:
                self._rounds.finish(now)
            else:
                self._go("ended")

    def _tell(self, now: int) -> None:
        """The own word; anew each time, since the incarnation may be another by now."""
        state = self._state
        if state.own is not None:
            key = state.own.key
            self._stopping.add(key)
            state.tell_all(Stopping(key.device, key.incarnation, self._sign(_word(key))))
        state.timers["last_call"] = now + self._grace_ns // TELLINGS

    def _depart(self, now: int, kind: str) -> None:
        state = self._state
        assert state.own is not None
        status = Status.LEFT if kind == "leave" else Status.RETIRED
        state.log("leaving", kind=kind, round=state.round)
        self._membership.depart(status)
        if kind == "retire":
            state.act(Export())
        state.phase, self._going, self._insists = Phase.GONE, kind, INSISTS
        state.timers["insist"] = now + INSIST_NS
        if not state.greeted():
            self._go(kind)

    def _go(self, reason: str) -> None:
        self._going = ""
        self._state.timers.pop("insist", None)
        self._rounds.say_farewell(reason, last=True)
        self._state.phase = Phase.GONE
        self._state.act(Exit(0, reason))


def _word(key: BlockKey) -> bytes:
    """What a device signs when it was told to stop."""
    return f"stopping {key}".encode()
