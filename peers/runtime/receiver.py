"""The receiving side of a device: it opens messages and queues them until their arrival times.

The sender of a message names its arrival time, so the bytes that wait are bounded, of data and of control
messages (reception_accounts.py). At the arrival time the message goes to delivery.py.
"""

from __future__ import annotations

from functools import partial

from peers.runtime.clock_differences import ClockDifferences
from peers.runtime.delivery import HANDLER_ERROR, Delivery, describe_with_place
from peers.runtime.event_queue import EventQueue, Kind
from peers.runtime.reception_accounts import MAX_FLIGHT_NS, ReceptionAccounts
from transport.clocks.real import Clock
from transport.clocks.virtual import VirtualClock
from transport.links.interface import Links, Received
from transport.security.replay import ReplayGuard
from transport.wire.errors import WireError
from transport.wire.messages import (
    Ack,
    Envelope,
    Message,
    Nack,
    Ping,
    PingRequest,
    Suspect,
    Window,
)
from transport.wire.packing import unpack

AHEAD_NS = MAX_FLIGHT_NS  # by which a late device advances probes: longer than any message waits
PROBES = (Ping, Ack, PingRequest, Nack, Suspect)  # their order among other messages does not matter


class Receiver:
    """Receives the messages of all links. `authenticated`: the links themselves prevent replays."""

    def __init__(
        self,
        links: Links,
        accounts: ReceptionAccounts,
        delivery: Delivery,
        queue: EventQueue,
        clock: Clock,
        virtual: VirtualClock | None,
        differences: ClockDifferences | None = None,
        *,
        authenticated: bool,
    ) -> None:
        self._links, self._accounts, self._delivery = links, accounts, delivery
        self._queue, self._clock, self._virtual = queue, clock, virtual
        self._differences = differences
        self._replays = None if authenticated else ReplayGuard()

    async def run(self) -> None:
        """Receive until the task is cancelled."""
        while True:
            received = await self._links.recv()
            try:
                opened = self.open(received)
                if opened is not None:
                    self._queue_message(received, *opened)
            except Exception as error:  # the barrier: no message ends the device
                self._accounts.refuse(received, HANDLER_ERROR, describe_with_place(error))

    def open(self, received: Received) -> tuple[Envelope, Message] | None:
        """Unpack a message. None: it was refused and counted."""
        try:
            envelope, message = unpack(received.frames)
            if envelope.src != received.source:
                raise WireError(f"it names {envelope.src!r} as its sender")
        except WireError as error:
            self._accounts.refuse(received, "malformed", str(error))
            return None
        if self._is_replay(envelope):
            self._accounts.refuse(
                received, "replayed", f"{envelope.kind} number {envelope.seq} has arrived before"
            )
            return None
        return envelope, message

    def _is_replay(self, envelope: Envelope) -> bool:
        """Window messages of the virtual clock have no number; the index of the window orders them."""
        if self._replays is None or envelope.kind == Window.__name__:
            return False
        return not self._replays.fresh(envelope.src, envelope.seq)

    def _queue_message(self, received: Received, envelope: Envelope, message: Message) -> None:
        if isinstance(message, Window):
            self._on_window(envelope, message, received)
            return
        if self._virtual is not None:
            self._virtual.on_received(envelope.src, envelope.seq)
        elif envelope.arrive_ns > self._clock.now() + MAX_FLIGHT_NS:
            self._accounts.refuse(received, "malformed", "its arrival time is too far in the future")
            return
        held = self._accounts.hold(received, message)
        if held is None:
            return
        if self._differences is not None and self._accounts.knows(envelope.src):
            self._differences.on_received(envelope.src, envelope.depart_ns, self._clock.now())
        event = partial(self._delivery.arrive, held, envelope, message, received)
        due_ns = self._when(envelope, message)
        self._queue.add(due_ns, Kind.MESSAGE, event, envelope.src, envelope.seq)
        self._clock.poke(due_ns)

    def _when(self, envelope: Envelope, message: Message) -> int:
        """The time of a message in the queue. A late device takes probes before all other messages."""
        late = self._virtual is None and envelope.arrive_ns <= self._clock.now()
        return envelope.arrive_ns - AHEAD_NS * (late and isinstance(message, PROBES))

    def _on_window(self, envelope: Envelope, window: Window, received: Received) -> None:
        if self._virtual is None:
            self._accounts.refuse(received, "unexpected", "this device has no virtual clock")
        else:
            self._virtual.on_window(envelope.src, window)
