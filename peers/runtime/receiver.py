"""What has come in and waits for its arrival: bounded, since whoever sends it says when that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from peers.protocol.actions import Action
from peers.protocol.state_machine import DeviceProtocol
from peers.runtime.event_queue import EventQueue, Kind
from peers.runtime.inbox import Inbox
from transport.clocks.real import Clock
from transport.clocks.virtual import VirtualClock
from transport.links.interface import Links, Received
from transport.wire.limits import MAX_PAYLOAD, WINDOW_BYTES
from transport.wire.messages import (
    Ack,
    Envelope,
    Message,
    Nack,
    Ping,
    PingRequest,
    Suspect,
    Update,
    Window,
)

MAX_FLIGHT_NS = 60_000_000_000  # no message may claim to arrive later than this
HEADER_ROOM = 1 << 12  # bytes: more than a message's header and framing
AHEAD_NS = MAX_FLIGHT_NS  # longer than anything waits here
HELD_BYTES = (
    WINDOW_BYTES + MAX_PAYLOAD + HEADER_ROOM
)  # of one known peer's data that waits here; of all others' together
OTHERS = ""  # their account
PROBES = (Ping, Ack, PingRequest, Nack, Suspect)  # in any order with whatever else there is
Take = Callable[[int, Envelope, Message, Received], list[Action]]


class Reception:
    """Puts messages on the agenda at their arrival. `take`: what then happens."""

    def __init__(
        self,
        links: Links,
        inbox: Inbox,
        protocol: DeviceProtocol,
        queue: EventQueue,
        clock: Clock,
        virtual: VirtualClock | None,
        take: Take,
    ) -> None:
        self._links, self._inbox, self._protocol, self._queue = links, inbox, protocol, queue
        self._clock, self._virtual, self._do = clock, virtual, take
        self._waiting: Counter[str] = Counter()  # bytes of data on the agenda, by account

    async def run(self) -> None:
        """For ever."""
        while True:
            received = await self._links.recv()
            opened = self._inbox.open(received)
            if opened is not None:
                self._admit(received, *opened)

    def _admit(self, received: Received, envelope: Envelope, message: Message) -> None:
        if isinstance(message, Window):
            self._on_window(envelope, message, received)
            return
        if self._virtual is not None:
            self._virtual.on_received(envelope.src, envelope.seq)
        elif envelope.arrive_ns > self._clock.now() + MAX_FLIGHT_NS:
            self._inbox.refuse(received, "malformed", "it says that it arrives in a far future")
            return
        account, size = self._account(envelope.src), received.wire_bytes * isinstance(message, Update)
        if size and self._waiting[account] + size > HELD_BYTES:
            self._inbox.refuse(received, "over_credit", f"{self._waiting[account]} bytes wait already")
            return
        self._waiting[account] += size
        event = partial(self._take, account, size, envelope, message, received)
        self._queue.add(self._when(envelope, message), Kind.MESSAGE, event, envelope.src, envelope.seq)
        self._clock.poke()

    def _when(self, envelope: Envelope, message: Message) -> int:
        """A device that is late with what has arrived answers first, and then goes on with all else."""
        late = self._virtual is None and envelope.arrive_ns <= self._clock.now()
        return envelope.arrive_ns - AHEAD_NS * (late and isinstance(message, PROBES))

    def _take(
        self, account: str, size: int, envelope: Envelope, message: Message, received: Received, now: int
    ) -> list[Action]:
        self._waiting[account] -= size
        return self._do(now, envelope, message, received)

    def _account(self, source: str) -> str:
        """Sources are claims: who invents names shares one account with all who do."""
        return source if source in self._protocol.peers else OTHERS

    def _on_window(self, envelope: Envelope, window: Window, received: Received) -> None:
        if self._virtual is None:
            self._inbox.refuse(received, "unexpected", "there is no virtual clock here")
        else:
            self._virtual.on_window(envelope.src, window)
