"""The receiving side of a device: open a message, queue it until its arrival time, hand it to the protocol.

The sender of a message names its arrival time, so the bytes that wait here are bounded, of data and of
control messages. Every refusal is counted under its reason.

A fault in the handling of a message ends no device (`HANDLER_ERROR`). The message counts as dropped, and its
sender is disconnected. Actions that were decided before the fault are performed, and the held blocks are
compared with the membership table again. So the learner holds the blocks of the table, and no deletion is
lost. Other state may have only a part of the message's effect, as after a lost message. Faults of a device's
own work (learner, timers, own messages) still end it.

The protocol decides about an update twice: `admit` sees the header before the
fragments are assembled (update_assembly.py), `update` checks the signature of the whole payload.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from coordinator_free.identifiers import BlockKey, Part
from peers.protocol.actions import Action, Drop, Tell
from peers.protocol.state_machine import DeviceProtocol
from peers.runtime.event_queue import EventQueue, Kind
from peers.runtime.update_assembly import UpdateAssembly
from transport.clocks.real import Clock
from transport.clocks.virtual import VirtualClock
from transport.links.interface import Links, Received
from transport.security.replay import ReplayGuard
from transport.security.security_events import count_security_event
from transport.shaping.accounting import Accounts, LinkAccount
from transport.wire.errors import WireError
from transport.wire.limits import MAX_PAYLOAD, WINDOW_BYTES
from transport.wire.messages import (
    Ack,
    Credit,
    Envelope,
    Hello,
    Message,
    Nack,
    Ping,
    PingRequest,
    Suspect,
    Update,
    Window,
)
from transport.wire.packing import unpack

CREDIT_BYTES = WINDOW_BYTES // 2  # less than the window, so that a sender never waits for credit in vain
MAX_FLIGHT_NS = 60_000_000_000  # longest time from now to the arrival time that a message names
HEADER_ROOM = 1 << 12  # bytes: more than a message's header and framing
AHEAD_NS = MAX_FLIGHT_NS  # by which a late device advances probes: longer than any message waits
HELD_BYTES = WINDOW_BYTES + MAX_PAYLOAD + HEADER_ROOM  # of data that waits here, for each account
HELD_CONTROL_BYTES = 4 << 20  # of control messages that wait here, for each account
MESSAGE_BYTES = 512  # added for each control message: a small one takes more memory than its bytes
HANDLER_ERROR = "handler_error"  # the reason of a message whose handling failed
OTHERS = ""  # the account that all unknown sources share
PROBES = (Ping, Ack, PingRequest, Nack, Suspect)  # their order among other messages does not matter
OnArrival = Callable[[Envelope, Message, Received], bool]
OnCopy = Callable[[str, Part, Tensor], object]


class Receiver:
    """Receives the messages of all links.

    `on_arrival`: is told each message at its arrival time, before the protocol. It returns False if it has
    dropped and counted the message. `on_copy`: is told each matrix that the protocol has taken in.
    `authenticated`: the links themselves prevent replays.
    """

    def __init__(
        self,
        links: Links,
        protocol: DeviceProtocol,
        assembly: UpdateAssembly,
        accounts: Accounts,
        queue: EventQueue,
        clock: Clock,
        virtual: VirtualClock | None,
        *,
        authenticated: bool,
        on_arrival: OnArrival,
        on_copy: OnCopy,
    ) -> None:
        self._links, self._protocol, self._assembly = links, protocol, assembly
        self._accounts, self._queue, self._clock, self._virtual = accounts, queue, clock, virtual
        self._on_arrival, self._on_copy = on_arrival, on_copy
        self._replays = None if authenticated else ReplayGuard()
        self._waiting: Counter[tuple[str, bool]] = Counter()  # queued bytes, by account; True: of data
        self._greeted_ns: dict[str, int] = {}  # departure of the last Hello of each peer
        self._received_bytes: int | None = None  # of the message handled last; None: it was dropped
        self._uncredited: Counter[str] = Counter()  # bytes of data received since the last credit, by peer

    async def run(self) -> None:
        """Receive until the task is cancelled."""
        while True:
            received = await self._links.recv()
            try:
                opened = self.open(received)
                if opened is not None:
                    self._queue_message(received, *opened)
            except Exception as error:  # the barrier: no message ends the device
                self._refuse(received, HANDLER_ERROR, describe(error))

    def forget_peer(self, peer: str) -> None:
        """Forget the credit and the unfinished updates of a peer whose link is closed."""
        self._uncredited.pop(peer, None)
        self._greeted_ns.pop(peer, None)
        self._assembly.drop_source(peer)

    def drop_block(self, block: BlockKey) -> None:
        """Forget the unfinished updates of a deleted block."""
        self._assembly.drop_block(block)

    # -- at the socket -------------------------------------------------------------------------------
    def open(self, received: Received) -> tuple[Envelope, Message] | None:
        """Unpack a message. None: it was refused and counted."""
        try:
            envelope, message = unpack(received.frames)
            if envelope.src != received.source:
                raise WireError(f"it names {envelope.src!r} as its sender")
        except WireError as error:
            self._refuse(received, "malformed", str(error))
            return None
        if self._is_replay(envelope):
            self._refuse(received, "replayed", f"{envelope.kind} number {envelope.seq} has arrived before")
            return None
        return envelope, message

    def _is_replay(self, envelope: Envelope) -> bool:
        """Window messages of the virtual clock have no number; the index of the window orders them."""
        if self._replays is None or envelope.kind == Window.__name__:
            return False
        return not self._replays.fresh(envelope.src, envelope.seq)

    def _refuse(self, received: Received, kind: str, why: str) -> None:
        """Drop a message that no honest device sends: count it as a security event and as a drop."""
        self._note_security_event(received, kind, why)
        self._account_of(received.source).dropped(kind, received.wire_bytes)
        if len(received.frames) > 1 and received.source in self._protocol.peers:
            self._uncredited[received.source] += received.wire_bytes  # it is no longer in flight

    def _note_security_event(self, received: Received, kind: str, why: str) -> None:
        count_security_event(
            self._links.security_events, kind, f"message from {received.source!r} dropped: {why}"
        )

    # -- in the queue --------------------------------------------------------------------------------
    def _queue_message(self, received: Received, envelope: Envelope, message: Message) -> None:
        if isinstance(message, Window):
            self._on_window(envelope, message, received)
            return
        if self._virtual is not None:
            self._virtual.on_received(envelope.src, envelope.seq)
        elif envelope.arrive_ns > self._clock.now() + MAX_FLIGHT_NS:
            self._refuse(received, "malformed", "its arrival time is too far in the future")
            return
        data = isinstance(message, Update)
        account = self._account(envelope.src), data
        size = received.wire_bytes + (0 if data else MESSAGE_BYTES)
        if self._waiting[account] + size > (HELD_BYTES if data else HELD_CONTROL_BYTES):
            reason = "over_credit" if data else "overload"
            self._refuse(received, reason, f"{self._waiting[account]} bytes wait already")
            return
        self._waiting[account] += size
        event = partial(self._arrive, account, size, envelope, message, received)
        self._queue.add(self._when(envelope, message), Kind.MESSAGE, event, envelope.src, envelope.seq)
        self._clock.poke()

    def _when(self, envelope: Envelope, message: Message) -> int:
        """The time of a message in the queue. A late device takes probes before all other messages."""
        late = self._virtual is None and envelope.arrive_ns <= self._clock.now()
        return envelope.arrive_ns - AHEAD_NS * (late and isinstance(message, PROBES))

    def _account(self, source: str) -> str:
        """Anybody can invent source names, so all unknown sources share one account."""
        return source if source in self._protocol.peers else OTHERS

    def _account_of(self, source: str) -> LinkAccount:
        """The account of a message. Names that are neither peers nor members share one."""
        known = source in self._protocol.peers or self._protocol.members.newest(source) is not None
        return self._accounts.source(source, known)

    def _on_window(self, envelope: Envelope, window: Window, received: Received) -> None:
        if self._virtual is None:
            self._refuse(received, "unexpected", "this device has no virtual clock")
        else:
            self._virtual.on_window(envelope.src, window)

    # -- at the arrival time -------------------------------------------------------------------------
    def _arrive(
        self,
        account: tuple[str, bool],
        size: int,
        envelope: Envelope,
        message: Message,
        received: Received,
        now: int,
    ) -> list[Action]:
        self._waiting[account] -= size
        if not self._waiting[account]:
            del self._waiting[account]
        if not self._on_arrival(envelope, message, received):
            return []
        return self.handle(now, envelope, message, received)

    def handle(self, now: int, envelope: Envelope, message: Message, received: Received) -> list[Action]:
        """Hand a message to the protocol, count it, and give credit for data. Returns the actions."""
        try:
            if isinstance(message, Update):
                actions = self._handle_update(now, message, received)
            else:
                actions = self._protocol.on_message(now, envelope.src, message)
                if Drop("forged") in actions:
                    why = "it holds a statement that its owner has not signed for this run"
                    self._note_security_event(received, "forged", why)
        except WireError as error:
            self._note_security_event(received, "malformed", str(error))
            actions = [Drop("malformed")]
        except Exception as error:  # the barrier: no message ends the device
            actions = [Drop(HANDLER_ERROR), *self.on_fault(now, received.source, error)]
        actions = self._count(now, envelope, received, actions)
        return actions + self._credit(received) if isinstance(message, Update) else actions

    def on_fault(self, now: int, source: str, error: Exception) -> list[Action]:
        """The handling of a message of `source` failed: count it; returns the actions that mend the state."""
        kind = HANDLER_ERROR
        count_security_event(
            self._links.security_events, kind, f"a message of {source!r} failed: {describe(error)}"
        )
        return self._protocol.abandon_message(now, source)

    def on_answer_fault(self, now: int, source: str, error: Exception) -> list[Action]:
        """An answer to the message of `source` that was handled last cannot be sent: it counts as dropped."""
        if self._received_bytes is not None:
            self._accounts.link(source).refuse_received(HANDLER_ERROR, self._received_bytes)
            self._received_bytes = None
        return self.on_fault(now, source, error)

    def _handle_update(self, now: int, header: Update, received: Received) -> list[Action]:
        reason = self._protocol.admit(received.source, header)
        if reason is not None:
            return [Drop(reason)]
        whole = self._assembly.add_fragment(received.source, header, received.frames[1])
        if whole is None:
            return []
        actions = self._protocol.update(now, received.source, header, whole.matrix, whole.payload)
        if Drop("forged") in actions:
            self._note_security_event(received, "forged", f"{header.block} has not signed this version")
        else:
            part = Part(BlockKey(header.block, header.block_incarnation), header.group)
            self._on_copy(received.source, part, whole.matrix)
        return actions

    def _count(self, now: int, envelope: Envelope, received: Received, actions: list[Action]) -> list[Action]:
        """Count a message as received or dropped; returns the actions without the drops."""
        link = self._account_of(received.source)
        drops = [action.reason for action in actions if isinstance(action, Drop)]
        self._received_bytes = None if drops else received.wire_bytes
        if drops:
            link.dropped(drops[0], received.wire_bytes)
        else:
            link.received(received.wire_bytes, now - envelope.depart_ns, self._longest_ns(now, envelope))
        return [action for action in actions if not isinstance(action, Drop)]

    def _longest_ns(self, now: int, envelope: Envelope) -> int:
        """The longest latency that this device believes.

        The sender names the departure itself. No message of a peer departs before its Hello, and a Hello
        takes no longer than a message may.
        """
        if envelope.kind == Hello.__name__:
            depart_ns = min(now, max(envelope.depart_ns, now - MAX_FLIGHT_NS))
            if envelope.src in self._protocol.peers:
                self._greeted_ns[envelope.src] = depart_ns
            return MAX_FLIGHT_NS
        return now - self._greeted_ns.get(envelope.src, now - MAX_FLIGHT_NS)

    def _credit(self, received: Received) -> list[Action]:
        """Tell a peer, at least CREDIT_BYTES at a time, how many more bytes of data may be in flight."""
        peer = received.source
        if peer not in self._protocol.peers:
            return []
        self._uncredited[peer] += received.wire_bytes
        if self._uncredited[peer] < CREDIT_BYTES:
            return []
        return [Tell(peer, Credit(self._uncredited.pop(peer)))]


def describe(error: Exception) -> str:
    """The type, text and place of an exception in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error!s:.200}{place}".replace("\n", " ")
