"""The sending side of a device in the event loop: payloads become frames, which the shaper paces.

All methods run in the event loop. `payload_encoder.py` has the work of the learner thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from coordinator_free.averaging.copy_distances import Distances
from coordinator_free.averaging.rate_allocation import Budget, Link
from coordinator_free.identifiers import BlockKey, Part
from peers.protocol.actions import Farewell, Publish
from peers.protocol.send_allocation import Supply
from peers.radio_config import FIFO
from peers.runtime.control_priority import departs, origin_of, priority_of, replaced_by
from peers.runtime.payload_encoder import Payload
from peers.runtime.spec import DeviceSpec
from peers.runtime.update_messages import bundles, rest_of
from transport.clocks.virtual import device_of
from transport.clocks.windows import LIFE_BITS
from transport.links.interface import Links
from transport.shaping.accounting import MAX_PEERS, Accounts
from transport.shaping.channel import LinkQuality, cost_bytes
from transport.shaping.outgoing import Departure, Outgoing
from transport.shaping.round_budget import Priority, Quota
from transport.shaping.shaper import Shaper
from transport.wire.codec_names import payload_bytes
from transport.wire.limits import (
    CURVE_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    MAX_PAYLOAD,
    SIGNATURE_BYTES,
    WINDOW_BYTES,
)
from transport.wire.messages import Bye, Envelope, Message
from transport.wire.packing import pack, stamp, wire_bytes

# A message that does not fit waits for the next round. So at most about this share of a budget stays unused.
BUNDLES_OF_A_BUDGET = 16


class Shape(NamedTuple):
    """Rows and rank of the matrix of a group."""

    rows: int
    rank: int


def max_frame_payload(rate_Bps: int) -> int:
    """Bytes of data in one message: 1 ms at the radio's rate, at least 64 KiB, at most `MAX_PAYLOAD`."""
    return min(max(FRAME_BYTES, rate_Bps // 1000), MAX_PAYLOAD)


def _ignore(*_: object) -> None:
    """The callback of a sender that nobody listens to."""


class Sender:
    """Queues, paces and accounts the outgoing messages of one device."""

    def __init__(
        self,
        spec: DeviceSpec,
        shapes: Mapping[str, Shape],
        links: Links,
        accounts: Accounts,
        now_ns: int,
        *,
        signed: bool = False,
        on_sent: Callable[[str, int], None] = _ignore,
        wake: Callable[[], None] = _ignore,
    ) -> None:
        """`shapes`: by group. `signed`: whether updates carry a signature.

        `on_sent` is called with the address and arrival time (ns) of each message that left. `wake` is called
        when a message may leave earlier than `next_ns` said.
        """
        radio = spec.config.radio
        self.device, self._radio, self._channel = spec.id, radio, spec.channel
        self._curve = spec.keys is not None
        self._header_bytes = HEADER_BYTES + self._curve * CURVE_BYTES + signed * SIGNATURE_BYTES
        self._shapes, self._links, self._accounts = shapes, links, accounts
        self._on_sent, self._wake = on_sent, wake
        self.quota = Quota(radio.budget_bytes, radio.control_share)
        self._tau_max_s = radio.tau_max_s or max(1e-3, spec.config.round.deadline_s)
        self._max_frame_payload = max_frame_payload(radio.rate_Bps)
        self._max_bundle = self._bundle_bytes()
        frame = self._max_frame_payload + self._header_bytes
        seed = spec.config.seed, spec.id
        shed = self._count_shed
        self._shaper = Shaper(radio.rate_Bps, frame, self.quota, now_ns, seed=seed, on_shed=shed)
        self._address: dict[str, str] = {}
        self._shaped: dict[str, tuple[LinkQuality, bool]] = {}  # as the shaper knows it; True: cut off
        # Virtual time needs numbers from 1 on for each address, because a peer may have an alias at first.
        # In real time a restarted device continues above the numbers of its earlier process. Receivers
        # would take lower ones for replays.
        self._virtual = spec.config.clock == "virtual"
        self._before_first = spec.life << LIFE_BITS if self._virtual else time.time_ns()
        self._seq: Counter[str] = Counter()
        self._in_flight: Counter[str] = Counter()  # bytes of data without credit, by peer
        self._round = -1
        self._live: tuple[str, ...] = (spec.id,)
        self._slowest_Bps = radio.rate_Bps
        self._by_address = {address: device_of(life) for life, address in spec.group.items()}
        self._cut_off: frozenset[str] = frozenset()
        self.outages: set[str] = set()  # peers to which no data leaves in this round

    def _bundle_bytes(self) -> int:
        """Most bytes of several matrices in one message: a frame, or what costs a share of the budget on the
        slowest link that is not in outage.
        """
        radio = self._radio
        slowest = radio.rate_Bps if radio.kind == "fixed" else int(radio.outage_bytes / self._tau_max_s)
        share = radio.budget_bytes // BUNDLES_OF_A_BUDGET * slowest // (slowest + radio.beta_Bps + 1)
        return min(self._max_frame_payload, max(1, share))

    # -- links -----------------------------------------------------------------------------------------
    def connect(self, peer: str, address: str, now_ns: int) -> None:
        self._links.connect(peer, address, self._on_broken)
        self._address[peer] = address
        self._update_link(peer, now_ns)
        self._set_in_flight(peer, 0)
        self._forget_oldest_links()

    def _forget_oldest_links(self) -> None:
        """Links keep their draws when they close. Names can be invented, so only the last ones are kept."""
        while len(self._shaped) > MAX_PEERS:
            oldest = next((peer for peer in self._shaped if peer not in self._address), None)
            if oldest is None:
                return
            del self._shaped[oldest]
            self._in_flight.pop(oldest, None)
            self._shaper.forget_link(oldest)

    def disconnect(self, peer: str) -> None:
        """Give up the link and abandon the messages that are queued for it."""
        self._abandon(lambda item: item.peer == peer, "gone")
        self._links.disconnect(peer)
        self._address.pop(peer, None)
        if peer in self._shaped:  # the last one is the one that was closed last
            self._shaped[peer] = self._shaped.pop(peer)
        self.outages.discard(peer)
        self._set_in_flight(peer, 0)

    def set_partition(self, cut_off: frozenset[str], now_ns: int) -> None:
        """Lose every message to these devices from now on. An empty set heals the partition."""
        self._cut_off = cut_off
        for peer in self._address:
            self._update_link(peer, now_ns)

    def on_credit(self, peer: str, size: int) -> None:
        """The peer has read so many bytes of data. As many more may be sent to it."""
        if peer in self._address:
            self._set_in_flight(peer, max(0, self._in_flight[peer] - size))

    def reset_in_flight(self, peer: str) -> None:
        """Nothing is on its way to the peer: its process started again or the connection was lost."""
        if peer in self._address:
            self._set_in_flight(peer, 0)

    def _on_broken(self, peer: str) -> None:
        if not self._virtual:  # real time must not influence a virtual run
            self.reset_in_flight(peer)
            self._wake()

    def _set_in_flight(self, peer: str, size: int) -> None:
        self._in_flight[peer] = size
        self._shaper.hold(peer, size >= WINDOW_BYTES)

    def start_round(self, round_: int, live: Iterable[str], now_ns: int) -> None:
        """Renew the quota and set the links to their quality in this round, in which all `live` transmit.

        Messages of the last round stay queued unless newer versions replace them.
        """
        self.quota.start_round()
        self._round, self._live = round_, tuple(sorted({*live, self.device}))
        for peer in self._address:
            self._update_link(peer, now_ns)
        rates = [self._shaped[peer][0].rate_Bps for peer in self._address]
        self._slowest_Bps = min(rates, default=self._radio.rate_Bps)

    def _quality(self, peer: str) -> LinkQuality:
        return self._channel.link(max(self._round, 0), self.device, self._device_of(peer), self._live)

    def _device_of(self, peer: str) -> str:
        """The device behind a peer that is known by an alias so far."""
        return self._by_address.get(self._address[peer], peer)

    def _update_link(self, peer: str, now_ns: int) -> None:
        link, cut_off = self._quality(peer), self._device_of(peer) in self._cut_off
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

    # -- what a round can send -------------------------------------------------------------------------
    def part_wire_bytes(self, group: str, codec: str | None = None) -> int:
        """Upper bound of the bytes on the wire of one (block, group) matrix. `codec` None: the scenario's."""
        size = payload_bytes(codec or self._radio.codec, *self._shapes[group])
        return size + self._header_bytes * -(-size // self._max_frame_payload)

    def data_budget(self) -> int:
        """Bytes of data that this round can still carry on the link with the highest cost."""
        return self.quota.data_left() * self._slowest_Bps // (self._slowest_Bps + self._radio.beta_Bps)

    def supply(self, distances: Distances) -> Supply | None:
        """What an allocator may spend in this round beyond the queued messages. None without an allocator."""
        if self._radio.allocator == FIFO:
            return None
        links = {peer: self._quality(peer) for peer in sorted(self._address)}
        queued = Counter[str]()
        for item in self._shaper.pending():
            queued[item.peer] += item.wire_bytes if item.cause != "control" else 0
        beta = self._radio.beta_Bps
        up = {peer: link for peer, link in links.items() if not link.outage}  # an outage spends nothing
        taken = sum(cost_bytes(queued[peer], link.rate_Bps, beta) for peer, link in up.items())
        usable = {peer: self._usable(link, queued[peer]) for peer, link in links.items()}
        sizes = {g: {str(c): self.part_wire_bytes(g, c) for c in self._radio.codecs} for g in self._shapes}
        return Supply(Budget(max(0, self.quota.data_left() - taken), usable), sizes, distances)

    def _usable(self, link: LinkQuality, queued_bytes: int) -> Link:
        """A link at the lower of its own rate and the radio's, less the queued bytes."""
        if link.outage:
            return Link(0.0)
        whole = Link.of(min(link.rate_Bps, self._radio.rate_Bps), self._tau_max_s)
        return Link(max(0.0, whole.cap_bytes - queued_bytes), 1 + self._radio.beta_Bps / link.rate_Bps)

    # -- queueing --------------------------------------------------------------------------------------
    def send_control(self, peer: str, incarnation: int, message: Message) -> None:
        """Queue a control message, which does not wait behind data."""
        frames = pack(Envelope(self.device, incarnation), message)
        item = self._control(peer, frames, priority_of(message))
        item.key, item.origin, item.departs = replaced_by(message), origin_of(message), departs(message)
        self._shaper.queue_control(item)

    def _control(self, peer: str, frames: list[bytes | memoryview], priority: Priority) -> Outgoing:
        return Outgoing(peer, "control", frames, wire_bytes(frames, self._curve), priority=priority)

    def _count_shed(self, item: Outgoing) -> None:
        self._accounts.link(item.peer).abandoned("shed", item.wire_bytes)

    def publish(self, action: Publish, payloads: Mapping[Part, Payload], incarnation: int) -> None:
        """Queue the data of a round for a neighbour, and behind it the manifest.

        A newer version of a part replaces the queued messages of an older one.
        """
        envelope, peer = Envelope(self.device, incarnation), action.peer
        newer = {part: version for part, version, _ in action.parts}
        self._abandon_parts(lambda part, version: version < newer.get(part, version), "superseded", peer)
        wanted = [(payloads[part], cause) for part, _, cause in action.parts]
        for bundle in bundles(peer, envelope, action.round, wanted, self._max_bundle):
            for item in bundle.messages(self._max_frame_payload, self._curve):
                self._shaper.queue_data(item)
        self._queue_behind_data(peer, pack(envelope, action.manifest))

    def send_bye(self, action: Farewell, incarnation: int) -> None:
        """Queue a Bye behind all messages to the peer. A leaver's queued data is abandoned."""
        peer, reason = action.peer, action.reason
        if reason == "leave":
            self._abandon(lambda item: item.peer == peer and item.cause != "control", "leaving")
        self._queue_behind_data(peer, pack(Envelope(self.device, incarnation), Bye(reason, action.last)))

    def _queue_behind_data(self, peer: str, frames: list[bytes | memoryview]) -> None:
        """In an outage data waits. Then the message goes ahead of it, so that the peer need not wait."""
        queue = self._shaper.queue_control if peer in self.outages else self._shaper.queue_data
        queue(self._control(peer, frames, Priority.MEMBERSHIP))

    def purge(self, block: BlockKey, reason: str) -> None:
        """Deletion: abandon all queued data of the block."""
        self._abandon_parts(lambda part, version: part.block == block, reason)

    def abandon_all(self, reason: str) -> None:
        """Abandon all queued messages, because the device ends."""
        self._abandon(lambda item: True, reason)

    def _abandon(self, matches: Callable[[Outgoing], bool], reason: str) -> None:
        self._purge(lambda item: None if matches(item) else item, reason)

    def _abandon_parts(
        self, stale: Callable[[Part, int], bool], reason: str, peer: str | None = None
    ) -> None:
        """Abandon queued matrices by part and version, of one peer or of all."""
        self._purge(lambda item: rest_of(item, stale, self._curve), reason, peer)

    def _purge(
        self, rest: Callable[[Outgoing], Outgoing | None], reason: str, only: str | None = None
    ) -> None:
        for peer, size in self._shaper.purge(rest, reason, only).bytes_by_peer.items():
            self._accounts.link(peer).abandoned(reason, size)

    # -- sending ---------------------------------------------------------------------------------------
    def next_ns(self, now_ns: int) -> int | None:
        """The next time at which a message can leave. None: not before a new message, round or credit."""
        return self._shaper.next_ns(now_ns)

    def send_due(self, now_ns: int) -> None:
        """Send the messages that may leave now."""
        for item in self._shaper.leaving(now_ns):
            self._send(item, now_ns)

    def _send(self, item: Departure, now_ns: int) -> None:
        account, header = self._accounts.link(item.peer), item.frames[0]
        if item.lost:  # a lost message has used the radio too
            account.sent(item.cause, item.wire_bytes, item.payload_bytes, len(header))
            account.lost(item.wire_bytes)
            return
        address = self._address.get(item.peer, "")
        stream = address if self._virtual else ""
        number = self._before_first + self._seq[stream] + 1
        frames = [stamp(header, number, now_ns, item.arrive_ns), *item.frames[1:]]
        if not self._links.send(item.peer, frames):
            account.abandoned("no_link", item.wire_bytes)
            self._shaper.take_back(item)
            return
        self._seq[stream] += 1
        account.sent(item.cause, item.wire_bytes, item.payload_bytes, len(header))
        if item.cause != "control":
            self._set_in_flight(item.peer, self._in_flight[item.peer] + item.wire_bytes)
        self._on_sent(address, item.arrive_ns)
