"""What comes in: frames to messages, parts to whole matrices, every refusal counted with its reason."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from coordinator_free.membership import Key
from peers.actions import Action, Drop, Tell
from transport.accounting import Accounts
from transport.codec import decode, payload_bytes
from transport.errors import WireError
from transport.links import Received
from transport.messages import Credit, Envelope, Message, Update, unpack
from transport.parts import Reassembler

if TYPE_CHECKING:
    from peers.learner import Learner
    from peers.protocol import DeviceProtocol

CREDIT_BYTES = 2 << 20  # a quarter of the outbox's window
log = logging.getLogger("unweft")


class Inbox:
    """Turns what a socket received into the protocol's actions and keeps the receiving side's accounts."""

    def __init__(self, protocol: DeviceProtocol, learner: Learner, accounts: Accounts) -> None:
        self._protocol = protocol
        self._accounts = accounts
        self._rows = {group: learner.layout.rows(group) for group in learner.groups}
        self._ranks = {group: learner.layout.rank(group) for group in learner.groups}
        self._taken: Counter[str] = Counter()  # bytes of data by peer since the last credit
        whole = sum(4 * self._rows[g] * self._ranks[g] for g in learner.groups)
        self._parts = Reassembler(max_bytes_in_flight=64 * whole)

    def forget(self, peer: str) -> None:
        self._taken.pop(peer, None)
        self._parts.drop_source(peer)

    def purge(self, block: Key) -> None:
        """Deletion: drop the unfinished matrices of a block."""
        self._parts.drop(block.device, block.incarnation)

    def open(self, received: Received) -> tuple[Envelope, Message] | None:
        """The message in what a socket received; None for a bad one, which costs a counter and a log line."""
        try:
            envelope, message = unpack(received.frames)
            if envelope.src != received.source:
                raise WireError(f"it names {envelope.src!r} as its sender")
        except WireError as error:
            log.warning("malformed message from %r dropped: %s", received.source, error)
            self._accounts.link(received.source).dropped("malformed", received.wire_bytes)
            return None
        return envelope, message

    def take(self, now: int, envelope: Envelope, message: Message, received: Received) -> list[Action]:
        """A message that has arrived; what it leads to."""
        try:
            actions = self._handle(now, envelope, message, received)
        except WireError as error:
            log.warning("bad payload from %r dropped: %s", received.source, error)
            actions = [Drop("malformed")]
        actions = self._count(now, envelope, received, actions)
        return actions if not isinstance(message, Update) else actions + self._credit(received)

    def _credit(self, received: Received) -> list[Action]:
        """In lumps, tell a peer how much of its data has been taken in: so much more may be on its way."""
        peer = received.source
        if peer not in self._protocol.peers:
            return []
        self._taken[peer] += received.wire_bytes
        if self._taken[peer] < CREDIT_BYTES:
            return []
        return [Tell(peer, Credit(self._taken.pop(peer)))]

    def _handle(self, now: int, envelope: Envelope, message: Message, received: Received) -> list[Action]:
        if not isinstance(message, Update):
            return self._protocol.receive(now, envelope.src, envelope.src_incarnation, message)
        reason = self._protocol.accepts(envelope.src, Key(message.block, message.block_incarnation))
        if reason is not None:
            return [Drop(reason)]
        self._check_shape(message)
        payload = self._parts.add(envelope.src, message, received.frames[1])
        if payload is None:
            return []
        values = decode(payload, message.codec, message.rows, message.rank)
        return self._protocol.update(now, envelope.src, message, values)

    def _check_shape(self, message: Update) -> None:
        rows, rank = self._rows.get(message.group), self._ranks.get(message.group)
        if (message.rows, message.rank) != (rows, rank):
            raise WireError(f"{message.group} is {rows} x {rank} here, {message.rows} x {message.rank} there")
        if message.total != payload_bytes(message.codec, message.rows, message.rank):
            raise WireError(
                f"a payload of {message.total} bytes is not what {message.codec} makes of its shape"
            )

    def _count(self, now: int, envelope: Envelope, received: Received, actions: list[Action]) -> list[Action]:
        link = self._accounts.link(received.source)
        drops = [action.reason for action in actions if isinstance(action, Drop)]
        if drops:
            link.dropped(drops[0], received.wire_bytes)
        else:
            link.received(received.wire_bytes, now - envelope.depart_ns)
        return [action for action in actions if not isinstance(action, Drop)]
