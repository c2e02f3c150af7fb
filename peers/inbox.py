"""What comes in: frames to messages, parts to whole matrices, every refusal counted with its reason."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from coordinator_free.membership import Key
from peers.actions import Action, Drop
from transport.accounting import Accounts
from transport.codec import decode, payload_bytes
from transport.errors import WireError
from transport.links import Received
from transport.messages import Envelope, Update, unpack
from transport.parts import Reassembler

if TYPE_CHECKING:
    from peers.learner import Learner
    from peers.protocol import DeviceProtocol

log = logging.getLogger("unweft")


class Inbox:
    """Turns what a socket received into the protocol's actions and keeps the receiving side's accounts."""

    def __init__(self, protocol: DeviceProtocol, learner: Learner, accounts: Accounts) -> None:
        self._protocol = protocol
        self._accounts = accounts
        self._rows = {group: learner.layout.rows(group) for group in learner.groups}
        self._ranks = {group: learner.layout.rank(group) for group in learner.groups}
        whole = sum(4 * self._rows[g] * self._ranks[g] for g in learner.groups)
        self._parts = Reassembler(max_bytes_in_flight=64 * whole)

    def forget(self, peer: str) -> None:
        self._parts.drop_source(peer)

    def purge(self, block: Key) -> None:
        """Deletion: drop the unfinished matrices of a block."""
        self._parts.drop(block.device, block.incarnation)

    def take(self, now: int, received: Received) -> list[Action]:
        """One received message; a bad one costs a counter and a log line, never more."""
        try:
            envelope, message = unpack(received.frames)
            if envelope.src != received.source:
                raise WireError(f"it names {envelope.src!r} as its sender")
        except WireError as error:
            log.warning("malformed message from %r dropped: %s", received.source, error)
            self._accounts.link(received.source).dropped("malformed", received.wire_bytes)
            return []
        try:
            actions = self._handle(now, envelope, message, received)
        except WireError as error:
            log.warning("bad payload from %r dropped: %s", received.source, error)
            actions = [Drop("malformed")]
        return self._count(now, envelope, received, actions)

    def _handle(self, now: int, envelope: Envelope, message: object, received: Received) -> list[Action]:
        if not isinstance(message, Update):
            return self._protocol.receive(now, envelope.src, envelope.src_incarnation, message)  # type: ignore[arg-type]
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
