"""The device as a state machine: events and the time in, actions out. No sockets, no sleeping, no tensors.

settle / join -> (train -> wait for manifests)* -> finish -> gone. Membership, suspicion and gossip run beside
the rounds in every state (method 5 and 9). Each part has a file: meeting, presence, joining, rounds; after
every event, whatever it made possible happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from coordinator_free.averaging.mixing import Arrival
from coordinator_free.correction.residuals import Size
from coordinator_free.identifiers import BlockKey, Part
from coordinator_free.membership.records import Record, Verify
from coordinator_free.membership.table import Membership
from peers.config import DeviceConfig
from peers.protocol.actions import Action, Drop
from peers.protocol.anti_entropy import AntiEntropy
from peers.protocol.connections import Connections, Difference
from peers.protocol.correction import Correction
from peers.protocol.departure import Departure
from peers.protocol.exchange import Exchange
from peers.protocol.failure_detection import FailureDetection
from peers.protocol.joining import Joining
from peers.protocol.membership import MembershipProtocol
from peers.protocol.overhead_offset import PartBytes
from peers.protocol.replicas import Replicas
from peers.protocol.rounds import Rounds
from peers.protocol.send_allocation import Supply
from peers.protocol.signed_versions import statement
from peers.protocol.state import SECOND, DeviceState, Identity, Peer, Phase
from transport.wire.messages import (
    Ack,
    Bye,
    Deleted,
    Gossip,
    Hello,
    Manifest,
    Message,
    Nack,
    Observed,
    Ping,
    PingRequest,
    Refuse,
    Request,
    Stopping,
    Suspect,
    Update,
)

__all__ = ["DeviceProtocol", "Identity", "Peer", "Phase"]


class DeviceProtocol:
    """One device's decisions."""

    def __init__(
        self,
        me: Identity,
        config: DeviceConfig,
        fingerprint: dict[str, Any],
        difference: Difference,
        sizes: Mapping[str, Size],
        part_bytes: PartBytes,
        sign: Callable[[bytes], bytes],
        verify: Verify,
    ) -> None:
        self._verify = verify
        self._s = DeviceState(me, config, sizes, part_bytes, sign, verify)
        self._connections = Connections(self._s, fingerprint, difference)
        self._replicas = Replicas(self._s)
        self._membership = MembershipProtocol(self._s, self._connections, self._replicas)
        self._failure_detection = FailureDetection(self._s, self._connections, self._membership)
        self._anti_entropy = AntiEntropy(self._s, self._connections, self._membership, self._replicas)
        self._correction = Correction(self._s, self._connections, sign, verify)
        self._connections.others_needed = self._correction.neighbours
        self._rounds = Rounds(self._s, self._connections, self._correction)
        self._joining = Joining(self._s, self._connections, self._rounds)
        self._departure = Departure(self._s, self._membership, self._rounds, sign, verify)
        self._timers: dict[str, Callable[[int], None]] = {
            "probe": self._failure_detection.on_timer,
            "upkeep": self._anti_entropy.on_timer,
            "push_pull": self._anti_entropy.on_push_pull,
            "reconnect": self._anti_entropy.on_reconnect,
            "evict": self._membership.on_evict,
            "settle": self._on_settle,
            "ask": self._joining.ask,
            "deadline": self._rounds.on_deadline,
            "grace": self._rounds.on_grace,
            "last_call": self._departure.on_last_call,
            "insist": self._departure.on_insist,
        }

    # -- what can be seen --------------------------------------------------------------------------
    @property
    def own(self) -> Record | None:
        return self._s.own

    @property
    def round(self) -> int:
        return self._s.round

    @property
    def state(self) -> Phase:
        return self._s.phase

    @property
    def blocks(self) -> dict[BlockKey, Record]:
        return self._s.blocks

    @property
    def members(self) -> Membership:
        return self._s.members

    @property
    def peers(self) -> dict[str, Peer]:
        return self._s.peers

    @property
    def exchange(self) -> Exchange:
        return self._s.exchange

    # -- events ------------------------------------------------------------------------------------
    def start(self, now: int) -> list[Action]:
        """The process is up and bound."""
        self._failure_detection.start(now)
        self._anti_entropy.start(now)
        self._s.timers["settle"] = now + int(self._s.config.membership.settle_s * SECOND)
        if not self._connections.call_seeds(now):
            self._membership.claim(now)
        return self._done(now)

    def next_timer_ns(self) -> int | None:
        return min(self._s.timers.values(), default=None)

    def tick(self, now: int) -> list[Action]:
        """A timer is due."""
        for name in [name for name, at in self._s.timers.items() if at <= now]:
            del self._s.timers[name]
            self._timers[name](now)
        return self._done(now)

    def trained(
        self,
        now: int,
        changed: Iterable[Part],
        budget_bytes: int,
        supply: Supply | None = None,
        outages: frozenset[str] = frozenset(),
    ) -> list[Action]:
        """The local steps of this round are done; `changed`: copies that the last mixing moved. `supply`:
        where an allocator decides what is sent. `outages`: peers to which no data goes in this round."""
        self._rounds.trained(now, changed, budget_bytes, supply, outages)
        return self._done(now)

    def diagnosed(self, now: int, epoch: int, values: Iterable[float]) -> list[Action]:
        """What the device was to measure after round `epoch` is there (correction/residuals.py)."""
        self._correction.diagnosed(epoch, values)
        return self._done(now)

    def signal(self, now: int, kind: str) -> list[Action]:
        """leave (SIGTERM) or retire (SIGINT). After the last round either is only an exit."""
        self._departure.signal(now, kind)
        return self._done(now)

    def accepts(self, source: str, block: BlockKey) -> str | None:
        """Why data of a block from a neighbour is not taken in; None: it is."""
        state = self._s
        peer = state.peers.get(source)
        if peer is None or not peer.greeted:
            return "stranger"
        if state.members.tombstoned(block):
            return "tombstoned"
        if block not in state.blocks:
            return "unknown"
        if state.own is not None and block == state.own.key and state.mode.shared_versions:
            return "own"
        return None

    @property
    def signed_versions(self) -> bool:
        """Whether a version of a block is its owner's alone, and signed by it."""
        return self._s.mode.shared_versions

    def authentic(self, header: Update, payload: bytes | bytearray | memoryview, signature: bytes) -> bool:
        """Whether the owner of a block has made this version of it."""
        part = Part(BlockKey(header.block, header.block_incarnation), header.group)
        record = self._s.members.get(part.block)
        said = statement(part, header.version, header.codec, payload)
        return record is not None and self._verify(record.public, said, signature)

    def update(self, now: int, source: str, header: Update, values: object) -> list[Action]:
        """A whole (block, group) matrix has arrived; it was accepted before."""
        part = Part(BlockKey(header.block, header.block_incarnation), header.group)
        self._s.network_round = max(self._s.network_round, header.round)
        if self._joining.wants(part, header.cause):
            self._joining.take(source, part, Arrival(header.version, values))
            return self._done(now)
        self._s.exchange.receive(source, part, header.version, header.round, values)
        return []  # it makes nothing possible: what waits, waits for manifests

    def receive(self, now: int, source: str, incarnation: int, message: Message) -> list[Action]:
        """A control message."""
        peer = self._s.peers.get(source)
        if isinstance(message, Hello):
            self._connections.on_hello(now, source, message)
        elif isinstance(message, Refuse):
            self._connections.on_refuse(source, message)
        elif peer is None or not peer.greeted:
            self._stranger(now, source, message)
        else:
            peer.heard_ns = now
            self._receive(now, source, message)
        return self._done(now)

    def _stranger(self, now: int, source: str, message: Message) -> None:
        """What one says that was not met changes nothing; but a member is greeted, and told that this device
        is there."""
        if self._connections.recall(now, source) and isinstance(message, Ping):
            self._failure_detection.on_ping(now, source, message)
        else:
            self._s.act(Drop("stranger"))

    def _receive(self, now: int, source: str, message: Message) -> None:
        match message:
            case Ping():
                self._failure_detection.on_ping(now, source, message)
            case Ack():
                self._failure_detection.on_ack(now, source, message)
            case PingRequest():
                self._failure_detection.on_ping_request(now, source, message)
            case Nack():
                self._failure_detection.on_nack(source, message)
            case Suspect():
                self._failure_detection.on_suspect(now, source, message)
            case Gossip():
                self._membership.on_gossip(now, source, message)
            case Deleted():
                self._replicas.on_deleted(now, message)
            case Manifest():
                if self._rounds.on_manifest(now, source, message):
                    self._joining.heard(source, message)
            case Request():
                self._rounds.on_request(source, message)
            case Observed():
                self._correction.heard(source, message)
            case Bye():
                self._connections.on_bye(source, message)
            case Stopping():
                self._departure.heard(now, source, message)

    def _on_settle(self, now: int) -> None:
        if self._s.own is None:
            self._membership.claim(now)
        self._rounds.settle(now)

    def _done(self, now: int) -> list[Action]:
        """Whatever the event has made possible; then all that was decided."""
        self._joining.try_ask(now)
        self._rounds.try_begin(now)
        self._rounds.try_publish()
        self._rounds.try_close(now)
        self._departure.try_end(now)
        self._rounds.try_exit()
        self._failure_detection.refresh()
        return self._s.flush()
