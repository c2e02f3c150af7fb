"""What comes in: frames to messages, parts to whole matrices, every refusal counted with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from coordinator_free.identifiers import BlockKey, Part
from peers.protocol.actions import Action, Drop, Tell
from peers.protocol.signed_versions import SignedCopy
from transport.links.interface import Received
from transport.security.replay import ReplayGuard
from transport.security.security_events import count_security_event
from transport.shaping.accounting import Accounts
from transport.wire.errors import WireError
from transport.wire.fragments import Reassembler
from transport.wire.limits import WINDOW_BYTES
from transport.wire.messages import Credit, Envelope, Message, Update, Window
from transport.wire.packing import unpack
from transport.wire.tensor_codec import decode, payload_bytes

if TYPE_CHECKING:
    from peers.learning.learner import Learner
    from peers.protocol.state_machine import DeviceProtocol

CREDIT_BYTES = WINDOW_BYTES // 2  # less than the window: a sender that is held back is given some


class Inbox:
    """Turns what a socket received into the protocol's actions and keeps the receiving side's accounts.

    `events`: what was refused for what it is, by kind. `curve`: whether the links are authenticated already.
    `rounds`: of the run; no data is of a later one.
    """

    def __init__(
        self,
        protocol: DeviceProtocol,
        learner: Learner,
        accounts: Accounts,
        events: Counter[str],
        curve: bool,
        rounds: int = 1 << 40,
    ) -> None:
        self._protocol, self._accounts, self._events = protocol, accounts, events
        self._rounds = rounds
        self._replays = None if curve else ReplayGuard()
        self._rows = {group: learner.layout.rows(group) for group in learner.groups}
        self._ranks = {group: learner.layout.rank(group) for group in learner.groups}
        self._taken: Counter[str] = Counter()  # bytes of data by peer since the last credit
        whole = sum(4 * self._rows[g] * self._ranks[g] for g in learner.groups)
        self._parts = Reassembler(max_bytes_in_flight=64 * whole)
        self.on_copy: Callable[[str, Part, Tensor], object] = lambda peer, part, matrix: None

    def forget(self, peer: str) -> None:
        self._taken.pop(peer, None)
        self._parts.drop_source(peer)

    def purge(self, block: BlockKey) -> None:
        """Deletion: drop the unfinished matrices of a block."""
        self._parts.drop_block(block.device, block.incarnation)

    def open(self, received: Received) -> tuple[Envelope, Message] | None:
        """The message in what a socket received; None for a bad one, which is only counted."""
        try:
            envelope, message = unpack(received.frames)
            if envelope.src != received.source:
                raise WireError(f"it names {envelope.src!r} as its sender")
        except WireError as error:
            self.refuse(received, "malformed", str(error))
            return None
        if self._is_replay(envelope):
            self.refuse(received, "replayed", f"it has been here: a {envelope.kind}, number {envelope.seq}")
            return None
        return envelope, message

    def _is_replay(self, envelope: Envelope) -> bool:
        """The virtual clock's own messages have no number: their window's index orders them."""
        if self._replays is None or envelope.kind == Window.__name__:
            return False
        return not self._replays.fresh(envelope.src, envelope.seq)

    def refuse(self, received: Received, kind: str, why: str) -> None:
        """Drop a message that no honest device sends: a counter, and now and then a line in the log."""
        self._note(received, kind, why)
        self._accounts.link(received.source).dropped(kind, received.wire_bytes)
        if len(received.frames) > 1 and received.source in self._protocol.peers:
            self._taken[received.source] += received.wire_bytes  # it was on its way, and is no more

    def _note(self, received: Received, kind: str, why: str) -> None:
        count_security_event(self._events, kind, f"message from {received.source!r} dropped: {why}")

    def take(self, now: int, envelope: Envelope, message: Message, received: Received) -> list[Action]:
        """A message that has arrived; what it leads to."""
        try:
            actions = self._handle(now, envelope, message, received)
        except WireError as error:
            self._note(received, "malformed", str(error))
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
        if message.round >= self._rounds:
            return [Drop("malformed")]
        reason = self._protocol.accepts(envelope.src, BlockKey(message.block, message.block_incarnation))
        if reason is not None:
            return [Drop(reason)]
        self._check_shape(message)
        payload = self._parts.add_fragment(envelope.src, message, received.frames[1])
        if payload is None:
            return []
        matrix = decode(payload, message.codec, message.rows, message.rank, owned=True)
        if not self._protocol.signed_versions:
            part = Part(BlockKey(message.block, message.block_incarnation), message.group)
            self.on_copy(envelope.src, part, matrix)
            return self._protocol.update(now, envelope.src, message, matrix)
        signature = message.signature or b""
        if not self._protocol.authentic(message, payload, signature):
            self._note(received, "forged", f"{message.block} has not signed this version of its block")
            return [Drop("forged")]
        copy = SignedCopy(matrix, bytes(payload), signature)
        return self._protocol.update(now, envelope.src, message, copy)

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
