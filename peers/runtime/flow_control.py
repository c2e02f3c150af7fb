"""Flow control of the sending side, from messages of the receiving side."""

from __future__ import annotations

from collections.abc import Callable

from peers.runtime.clock_differences import ClockDifferences
from peers.runtime.learner_thread import LearnerThread
from peers.runtime.sender import Sender
from transport.links.interface import Received
from transport.shaping.accounting import Accounts
from transport.wire.messages import Credit, Envelope, Hello, Message, Transit


class FlowControl:
    """`absent`: whether the device has yet to join. Until then it drops every message.

    `devices`: the names of all devices of the run, as far as they are known before.
    """

    def __init__(
        self,
        sender: Sender,
        learner_thread: LearnerThread,
        accounts: Accounts,
        absent: Callable[[], bool],
        devices: frozenset[str],
        differences: ClockDifferences | None = None,
    ) -> None:
        self._sender, self._learner_thread = sender, learner_thread
        self._accounts, self._absent, self._devices = accounts, absent, devices
        self._differences = differences

    def on_arrival(self, envelope: Envelope, message: Message, received: Received) -> bool:
        """Apply a message before the protocol gets it. False: the message was dropped and counted."""
        if self._absent():
            account = self._accounts.source(envelope.src, envelope.src in self._devices)
            account.dropped("absent", received.wire_bytes)
            return False
        if isinstance(message, Credit):
            self._sender.on_credit(envelope.src, message.bytes)
        elif isinstance(message, Transit) and self._differences is not None:
            self._differences.on_transit(envelope.src, message)
        elif isinstance(message, Hello):  # the peer's process may have started again
            self._sender.reset_in_flight(envelope.src)
            self._learner_thread.forget_copies_of(envelope.src)
        return True
