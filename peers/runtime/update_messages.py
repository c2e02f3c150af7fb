"""The messages in which matrices of a round go to a neighbour: as many matrices in one as fit.

A device with many neighbours' blocks sends many small matrices. Most of the cost of a message is the same for
one matrix and for twenty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from coordinator_free.identifiers import Part
from peers.runtime.payload_encoder import Payload
from transport.shaping.outgoing import Outgoing
from transport.wire.limits import MAX_UPDATES
from transport.wire.messages import Buffer, Envelope
from transport.wire.packing import pack_fragments, pack_updates, wire_bytes


@dataclass(frozen=True, slots=True)
class Bundle:
    """Whole payloads for one neighbour in one message. round: in which they are sent."""

    peer: str
    envelope: Envelope
    round: int
    cause: str
    payloads: Sequence[Payload]

    def message(self, curve: bool) -> Outgoing:
        """The message. curve: the links are encrypted."""
        headers = [payload.header(self.round, self.cause) for payload in self.payloads]
        data = [payload.data for payload in self.payloads]
        joined = data[0] if len(data) == 1 else b"".join(data)
        return self._outgoing(pack_updates(self.envelope, headers, joined), curve)

    def messages(self, max_payload: int, curve: bool) -> list[Outgoing]:
        """The messages: one, or several if a single payload is longer than `max_payload` bytes."""
        first = self.payloads[0]
        if len(first.data) <= max_payload:
            return [self.message(curve)]
        update = first.update(self.round, self.cause)
        fragments = pack_fragments(self.envelope, update, first.data, max_payload)
        return [self._outgoing(frames, curve) for frames in fragments]

    def without(self, stale: Callable[[Part, int], bool]) -> Bundle | None:
        """What stays without the payloads whose part and version are stale; None: nothing."""
        kept = [payload for payload in self.payloads if not stale(payload.part, payload.version)]
        if len(kept) == len(self.payloads):
            return self
        return Bundle(self.peer, self.envelope, self.round, self.cause, kept) if kept else None

    def _outgoing(self, frames: Sequence[Buffer], curve: bool) -> Outgoing:
        size = wire_bytes(frames, curve)
        return Outgoing(self.peer, self.cause, frames, size, len(frames[1]), self)


def bundles(
    peer: str,
    envelope: Envelope,
    round_: int,
    payloads: Iterable[tuple[Payload, str]],
    max_payload: int,
) -> Iterator[Bundle]:
    """The payloads, each with its cause, in bundles of one cause.

    With its headers, a bundle has at most `max_payload` bytes. A longer payload has a bundle of its own.
    """
    by_cause: dict[str, list[Payload]] = {}
    for payload, cause in payloads:
        by_cause.setdefault(cause, []).append(payload)
    for cause, of_cause in by_cause.items():
        bundle, filled = list[Payload](), 0
        for payload in of_cause:
            size = len(payload.data) + len(payload.header(round_, cause))
            if bundle and (filled + size > max_payload or len(bundle) == MAX_UPDATES):
                yield Bundle(peer, envelope, round_, cause, bundle)
                bundle, filled = [], 0
            bundle.append(payload)
            filled += size
        yield Bundle(peer, envelope, round_, cause, bundle)


def rest_of(item: Outgoing, stale: Callable[[Part, int], bool], curve: bool) -> Outgoing | None:
    """What stays of a queued message without its stale matrices: itself, a smaller one or None."""
    bundle = item.content
    if not isinstance(bundle, Bundle):
        return item
    left = bundle.without(stale)
    if left is bundle:
        return item
    return None if left is None else left.message(curve)
