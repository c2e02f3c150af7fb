"""What goes out: matrices to parts, parts to frames, frames through the shaper to the links."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator_free.averaging.rate_allocation import Budget, Link
from coordinator_free.identifiers import BlockKey, Part
from coordinator_free.seeded_random import blake2b_128, generator
from peers.protocol.actions import Farewell, Publish
from peers.protocol.send_allocation import Supply
from transport.clocks.windows import LIFE_BITS
from transport.links.interface import Links
from transport.shaping.accounting import Accounts
from transport.shaping.channel import LinkQuality, cost_bytes
from transport.shaping.shaper import Departure, Outgoing, Shaper
from transport.shaping.token_bucket import Quota
from transport.wire.checksum import xxh3
from transport.wire.limits import (
    CURVE_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    MAX_PAYLOAD,
    SIGNATURE_BYTES,
    WINDOW_BYTES,
)
from transport.wire.messages import Bye, Envelope, Message, Update
from transport.wire.packing import pack, pack_fragments, stamp, wire_bytes
from transport.wire.tensor_codec import (
    FEEDBACK,
    decode,
    encode,
    encode_feedback,
    encode_view,
    payload_bytes,
)

if TYPE_CHECKING:
    from torch import Tensor

    from peers.learning.learner import Learner
    from peers.learning.neighbour_copies import Distances, NeighbourCopies
    from peers.protocol.signed_versions import Versions
    from peers.runtime.main import DeviceSpec


def frame_bytes(rate_Bps: int) -> int:
    """Payload of one message: what the radio sends in a millisecond, in [64 KiB, what a message may hold]."""
    return min(max(FRAME_BYTES, rate_Bps // 1000), MAX_PAYLOAD)


@dataclass(frozen=True, slots=True)
class _Payload:
    data: bytes | memoryview
    xxh3: int | None
    signature: bytes | None
    codec: str
    decoded: Tensor | None = None  # as the other side will have it, for an allocator
    packed: dict[object, list[tuple[bytes, memoryview]]] = field(default_factory=dict)  # the same for all


class Outbox:
    """The sending side of one device."""

    def __init__(
        self,
        spec: DeviceSpec,
        learner: Learner,
        links: Links,
        accounts: Accounts,
        now_ns: int,
        versions: Versions | None = None,
        copies: NeighbourCopies | None = None,
    ) -> None:
        """`versions`: where a block's versions are their owner's, and signed. `copies`: where an allocator
        decides what is sent."""
        radio = spec.config.radio
        self.device, self._radio, self._channel = spec.id, radio, spec.channel
        self._curve = spec.keys is not None
        self._versions, self._copies = versions, copies
        signed = versions is not None
        self._header_bytes = HEADER_BYTES + self._curve * CURVE_BYTES + signed * SIGNATURE_BYTES
        self._learner, self._links, self._accounts = learner, links, accounts
        self.quota = Quota(radio.budget_bytes, radio.control_share)
        self._seed, self._part_bytes = (spec.config.seed, spec.id), frame_bytes(radio.rate_Bps)
        frame = self._part_bytes + self._header_bytes
        self._shaper = Shaper(radio.rate_Bps, frame, self.quota, now_ns, seed=self._seed)
        self._address: dict[str, str] = {}
        self._shaped: dict[str, tuple[LinkQuality, bool]] = {}  # as it was told last; True: cut off
        # Virtual time needs numbers from 1 on by address: a peer may be known under an alias first. Else
        # a device that starts again goes on above what it has used: others hold less for a replay.
        self._virtual = spec.config.clock == "virtual"
        self._before_first = spec.life << LIFE_BITS if self._virtual else time.time_ns()
        self._seq: Counter[str] = Counter()
        self._in_flight: Counter[str] = Counter()
        self._encoded: dict[Part, tuple[int, dict[str, _Payload]]] = {}  # version, payloads by codec
        self._errors: dict[Part, Tensor] = {}  # of int8 and int4: what has not been sent of what is held
        self._round = -1
        self._live: tuple[str, ...] = (spec.id,)
        self._slowest_Bps = radio.rate_Bps
        self._tau_max_s = radio.tau_max_s or max(1e-3, spec.config.round.deadline_s)
        self._by_address = {address: life.partition("#")[0] for life, address in spec.group.items()}
        self._cut_off: frozenset[str] = frozenset()
        self.outages: set[str] = set()  # peers whose data waits in this round
        self.on_sent: Callable[[str, int], None] = lambda address, arrive_ns: None

    # -- links -----------------------------------------------------------------------------------------
    def connect(self, peer: str, address: str, now_ns: int) -> None:
        self._links.connect(peer, address)
        self._address[peer] = address
        self._shape(peer, now_ns)
        self._set_in_flight(peer, 0)

    def disconnect(self, peer: str) -> None:
        """A link that is given up: what is queued for it is not sent."""
        self._remove(lambda item: item.peer == peer, "gone")
        self._links.disconnect(peer)
        self._address.pop(peer, None)
        self.outages.discard(peer)
        self._set_in_flight(peer, 0)

    def cut_off(self, devices: frozenset[str], now_ns: int) -> None:
        """A partition: all that is sent to these devices from now on is lost."""
        self._cut_off = devices
        for peer in self._address:
            self._shape(peer, now_ns)

    def credit(self, peer: str, size: int | None = None) -> None:
        """The peer has taken so many bytes of data in (None: all): as many more may be on their way to it."""
        if peer in self._address:
            left = 0 if size is None else max(0, self._in_flight[peer] - size)
            self._set_in_flight(peer, left)

    def _set_in_flight(self, peer: str, size: int) -> None:
        self._in_flight[peer] = size
        self._shaper.hold(peer, size >= WINDOW_BYTES)

    # -- what is to be sent ----------------------------------------------------------------------------
    def part_bytes(self, group: str, codec: str | None = None) -> int:
        """What one (block, group) matrix costs on the wire, at most. `codec` None: the scenario's."""
        layout = self._learner.layout
        size = payload_bytes(codec or self._radio.codec, layout.rows(group), layout.rank(group))
        return size + self._header_bytes * -(-size // self._part_bytes)

    def start_round(self, round_: int, live: Iterable[str], now_ns: int) -> None:
        """A new quota, and links as the channel makes them in this round, in which all who are live transmit.

        What the last round left in the queue goes on under this one, unless it is replaced.
        """
        self.quota.start_round()
        self._round, self._live = round_, tuple(sorted({*live, self.device}))
        for peer in self._address:
            self._shape(peer, now_ns)
        rates = [self._shaped[peer][0].rate_Bps for peer in self._address]
        self._slowest_Bps = min(rates, default=self._radio.rate_Bps)

    def _quality(self, peer: str) -> LinkQuality:
        return self._channel.link(max(self._round, 0), self.device, self._behind(peer), self._live)

    def _behind(self, peer: str) -> str:
        """The device that is known under an alias so far."""
        return self._by_address.get(self._address[peer], peer)

    def _shape(self, peer: str, now_ns: int) -> None:
        link, cut_off = self._quality(peer), self._behind(peer) in self._cut_off
        (self.outages.add if link.outage else self.outages.discard)(peer)
        if self._shaped.get(peer) == (link, cut_off):
            return
        self._shaped[peer] = link, cut_off
        self._shaper.set_link(
            peer,
            link.rate_Bps,
            link.latency_ns,
            link.jitter_ns,
            1.0 if cut_off else link.loss,
            link.outage,
            beta_Bps=self._radio.beta_Bps,
            now_ns=now_ns,
        )

    def data_budget(self) -> int:
        """Bytes of data that this round can still carry, on the link that makes them cost most."""
        return self.quota.data_left() * self._slowest_Bps // (self._slowest_Bps + self._radio.beta_Bps)

    def supply(self, distances: Distances) -> Supply | None:
        """What an allocator may spend in this round beside what is still queued; None: there is none."""
        if self._copies is None:
            return None
        links = {peer: self._quality(peer) for peer in sorted(self._address)}
        queued = Counter[str]()
        for item in self._shaper.pending():
            queued[item.peer] += item.wire_bytes if item.cause != "control" else 0
        beta = self._radio.beta_Bps
        up = {peer: link for peer, link in links.items() if not link.outage}  # in an outage what waits stays
        taken = sum(cost_bytes(queued[peer], link.rate_Bps, beta) for peer, link in up.items())
        usable = {peer: self._usable(link, queued[peer]) for peer, link in links.items()}
        sizes = {g: {str(c): self.part_bytes(g, c) for c in self._radio.codecs} for g in self._learner.groups}
        return Supply(Budget(max(0, self.quota.data_left() - taken), usable), sizes, distances)

    def _usable(self, link: LinkQuality, queued_bytes: int) -> Link:
        """At the link's rate or the device's own, whichever is less; less what is queued."""
        if link.outage:
            return Link(0.0)
        whole = Link.of(min(link.rate_Bps, self._radio.rate_Bps), self._tau_max_s)
        return Link(max(0.0, whole.cap_bytes - queued_bytes), 1 + self._radio.beta_Bps / link.rate_Bps)

    def tell(self, peer: str, incarnation: int, message: Message) -> None:
        """Send a control message at once."""
        frames = pack(Envelope(self.device, incarnation), message)
        self._shaper.queue_control(Outgoing(peer, "control", frames, wire_bytes(frames, self._curve)))

    def encoded(self, action: Publish) -> dict[Part, _Payload] | None:
        """What `encode` would return where it has nothing left to do; else None."""
        if self._copies is not None:  # they are the learner's thread's
            return None
        found = {}
        for part, version, _ in action.parts:
            kept = self._encoded.get(part)
            codec = action.codecs.get(part, self._radio.codec)
            done = None if kept is None or kept[0] != version else kept[1].get(codec)
            if done is None:
                return None
            found[part] = done
        return found

    def encode(self, action: Publish) -> dict[Part, _Payload]:
        """The matrices of a round as bytes, encoded once in a codec for all neighbours. Runs in the learner's
        thread."""
        payloads = {}
        for part, version, _ in action.parts:
            codec = action.codecs.get(part, self._radio.codec)
            payload = payloads[part] = self._payload(part, version, codec)
            if self._copies is not None and payload.decoded is not None:
                self._copies.note(action.peer, part, payload.decoded)
        return payloads

    def _payload(self, part: Part, version: int, codec: str) -> _Payload:
        kept = self._encoded.get(part)
        if kept is None or kept[0] != version:
            kept = self._encoded[part] = (version, {})
        done = kept[1].get(codec)
        if done is None:
            data, signature = self._signed(part, version, codec)
            checksum = None if self._curve else xxh3(data)  # CURVE authenticates what it carries
            layout, decoded = self._learner.layout, None
            if self._copies is not None:
                decoded = decode(data, codec, layout.rows(part.group), layout.rank(part.group))
            done = kept[1][codec] = _Payload(data, checksum, signature, codec, decoded)
        return done

    def _signed(self, part: Part, version: int, codec: str) -> tuple[bytes | memoryview, bytes | None]:
        """A version's bytes and its owner's signature; of another's block just those that came."""
        copy = None if self._versions is None else self._versions.relayed(part, version)
        if copy is not None:
            return copy.payload, copy.signature
        data = self._encode(part, version, codec)
        signs = self._versions.sign if self._versions is not None else None
        return data, None if signs is None else signs(part, version, codec, data)

    def _encode(self, part: Part, version: int, codec: str) -> bytes | memoryview:
        """Codecs that round coarsely carry over what earlier sends of a part have lost. Not where neighbours
        are sent different ones; an allocator knows for each what was lost."""
        matrix = self._learner.read(part.block, part.group)
        if codec not in FEEDBACK:
            return encode_view(matrix, codec)  # `read` has made a copy
        draw = generator(repr((*self._seed, *part.block, part.group, version)), digest=blake2b_128)
        if self._copies is not None or codec != self._radio.codec:
            return encode(matrix, codec, draw)
        data, self._errors[part] = encode_feedback(matrix, codec, draw, self._errors.get(part))
        return data

    def publish(self, action: Publish, payloads: dict[Part, _Payload], incarnation: int) -> None:
        """Queue a round's data for a neighbour and the manifest that closes it."""
        envelope = Envelope(self.device, incarnation)
        for part, version, cause in action.parts:
            payload = payloads[part]
            older = self._shaper.abandon_older(part, version, action.peer)
            if older.bytes:
                self._accounts.link(action.peer).abandoned("superseded", older.bytes)
            for frames in self._messages(envelope, part, version, action.round, cause, payload):
                size = wire_bytes(frames, self._curve)
                self._shaper.queue_data(
                    Outgoing(action.peer, cause, frames, size, len(frames[1]), part, version)
                )
        self._last(action.peer, pack(envelope, action.manifest))

    def _messages(
        self, envelope: Envelope, part: Part, version: int, round_: int, cause: str, payload: _Payload
    ) -> list[tuple[bytes, memoryview]]:
        """An update's parts: the same messages for all neighbours, until they are stamped."""
        key = (envelope, round_, cause)
        if key not in payload.packed:
            payload.packed.clear()
            header = self._header(part, version, round_, cause, payload)
            payload.packed[key] = pack_fragments(envelope, header, payload.data, self._part_bytes)
        return payload.packed[key]

    def farewell(self, action: Farewell, incarnation: int) -> None:
        """The end of the stream to a peer, behind all that is queued; a leaver's data is not sent."""
        peer, reason = action.peer, action.reason
        if reason == "leave":
            self._remove(lambda item: item.peer == peer and item.cause != "control", "leaving")
        self._last(peer, pack(Envelope(self.device, incarnation), Bye(reason, action.last)))

    def refitted(self, block: BlockKey) -> None:
        """The own block is another than a moment ago under the same version: what is encoded is not it."""
        for part in [part for part in self._encoded if part.block == block]:
            del self._encoded[part]

    def purge(self, block: BlockKey, reason: str) -> None:
        """Deletion: nothing of the block stays queued or encoded."""
        self._remove(lambda item: isinstance(item.key, Part) and item.key.block == block, reason)
        for kept in (self._encoded, self._errors):
            for part in [part for part in kept if part.block == block]:
                del kept[part]

    # -- what leaves -----------------------------------------------------------------------------------
    def next_ns(self, now_ns: int) -> int | None:
        """When something can leave; None: nothing before there is a new message, round or credit."""
        return self._shaper.next_ns(now_ns)

    def send_due(self, now_ns: int) -> None:
        """Send what may leave now."""
        for item in self._shaper.leaving(now_ns):
            self._send(item, now_ns)

    def abandon(self, reason: str) -> None:
        """The device ends: what is still queued is not sent."""
        self._remove(lambda item: True, reason)

    def _send(self, item: Departure, now_ns: int) -> None:
        account, header = self._accounts.link(item.peer), item.frames[0]
        if item.lost:  # it has been on the air all the same
            account.sent(item.cause, item.wire_bytes, item.payload_bytes, len(header))
            account.lost(item.wire_bytes)
            return
        address = self._address.get(item.peer, "")
        stream = address if self._virtual else ""
        number = self._before_first + self._seq[stream] + 1
        frames = [stamp(header, number, now_ns, item.arrive_ns), *item.frames[1:]]
        if not self._links.send(item.peer, frames):
            account.abandoned("no_link", item.wire_bytes)
            return
        self._seq[stream] += 1
        account.sent(item.cause, item.wire_bytes, item.payload_bytes, len(header))
        if item.cause != "control":
            self._set_in_flight(item.peer, self._in_flight[item.peer] + item.wire_bytes)
        self.on_sent(address, item.arrive_ns)

    def _last(self, peer: str, frames: list[bytes | memoryview]) -> None:
        """Behind all data; in an outage, in which data waits, nobody is to wait for it."""
        queue = self._shaper.queue_control if peer in self.outages else self._shaper.queue_data
        queue(Outgoing(peer, "control", frames, wire_bytes(frames, self._curve)))

    def _remove(self, doomed: Callable[[Outgoing], bool], reason: str) -> None:
        def counted(item: Outgoing) -> bool:
            if not doomed(item):
                return False
            self._accounts.link(item.peer).abandoned(reason, item.wire_bytes)
            return True

        self._shaper.purge(counted)

    def _header(self, part: Part, version: int, round_: int, cause: str, payload: _Payload) -> Update:
        """Of the first part of a payload."""
        layout = self._learner.layout
        return Update(
            block=part.block.device,
            block_incarnation=part.block.incarnation,
            group=part.group,
            version=version,
            round=round_,
            cause=cause,
            codec=payload.codec,
            rows=layout.rows(part.group),
            rank=layout.rank(part.group),
            offset=0,
            total=len(payload.data),
            xxh3=payload.xxh3,
            signature=payload.signature,
        )
