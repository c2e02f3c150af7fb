"""One device as a state machine: events and the time in, actions out; no sockets, no sleeping, no tensors.

docs/architecture.md draws the phases of a device and the path of a message. Each topic has a file:

- state.py: the shared state and the transitions between phases; actions.py: the actions.
- connections.py: hellos, refusals and links. membership.py: the own record and changes of the table.
  admission.py: which records of others may enter the table.
- replicas.py: which blocks are held. failure_detection.py: probes and suspicions. anti_entropy.py: repair.
- joining.py: the first blocks of a joiner. rounds.py: training, publishing, closing. departure.py: the end.
- exchange.py: versions and copies. send_allocation.py and overhead_offset.py: budgets.
  block_survival.py: which owners stay. sent_count.py: what was sent.
  relaying.py and similar_copies.py: what need not be sent. send_order.py: what goes first.
  signed_versions.py: signatures of versions. correction.py: measurements and policies.
  masked_reports.py: reports of which only the mean can be read.
  interference.py: second moments of the neighbours' inputs.

Membership and failure detection run beside the rounds in every phase (method 5 and 9).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from coordinator_free.averaging.mixing import Arrival
from coordinator_free.correction.residuals import Size
from coordinator_free.identifiers import BlockKey, Part
from coordinator_free.membership.signed_records import Record, Verify
from coordinator_free.membership.table import Membership
from peers.config import DeviceConfig
from peers.protocol.actions import Action, Drop
from peers.protocol.admission import Admission
from peers.protocol.anti_entropy import AntiEntropy
from peers.protocol.block_survival import BlockSurvival
from peers.protocol.connections import Connections, Difference
from peers.protocol.correction import Correction
from peers.protocol.departure import Departure
from peers.protocol.exchange import Exchange
from peers.protocol.failure_detection import FailureDetection
from peers.protocol.interference import Interference
from peers.protocol.joining import Joining
from peers.protocol.membership import MembershipProtocol
from peers.protocol.overhead_offset import PartBytes
from peers.protocol.phases import Phase
from peers.protocol.replicas import Replicas
from peers.protocol.rounds import Rounds
from peers.protocol.send_allocation import Supply
from peers.protocol.signed_versions import SignedCopy, statement
from peers.protocol.similar_copies import Near
from peers.protocol.state import SECOND, DeviceState, Identity, Peer
from transport.wire import messages

__all__ = ["DeviceProtocol", "Identity", "Peer", "Phase"]

Payload = bytes | bytearray | memoryview
Handler = Callable[[int, str, Any], None]  # now, source, message
BEFORE_GREETING = (messages.Hello, messages.Refuse)  # handled from devices that were not greeted


class DeviceProtocol:
    """The decisions of one device. Every event returns the actions that it leads to."""

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
        self._state = state = DeviceState(me, config, sizes, part_bytes, sign, verify)
        self._connections = Connections(state, fingerprint, difference)
        self._replicas = Replicas(state)
        admission = Admission(state, me.signer_of)
        self._membership = MembershipProtocol(state, self._connections, self._replicas, admission)
        self._failure_detection = FailureDetection(state, self._connections, self._membership)
        self._correction = Correction(state, self._connections, sign, verify)
        self._interference = Interference(state)
        self._anti_entropy = AntiEntropy(
            state, self._connections, self._membership, self._replicas, self._correction.neighbours
        )
        survival = BlockSurvival(state, self._failure_detection.suspected)
        self._rounds = Rounds(state, self._connections, self._correction, survival)
        self._joining = Joining(state, self._connections, self._rounds)
        self._departure = Departure(state, self._membership, self._rounds, sign, verify)
        self._timers = self._timer_table()
        self._handlers = self._handler_table()

    def _timer_table(self) -> dict[str, Callable[[int], None]]:
        return {
            "probe": self._on_probe,
            "upkeep": self._anti_entropy.on_upkeep,
            "push_pull": self._anti_entropy.on_push_pull,
            "reconnect": self._anti_entropy.on_reconnect,
            "evict": self._membership.on_evict,
            "settle": self._on_settle,
            "ask": self._joining.on_ask,
            "deadline": self._rounds.on_deadline,
            "grace": self._rounds.on_grace,
            "last_call": self._departure.on_last_call,
            "insist": self._departure.on_insist,
        }

    def _handler_table(self) -> dict[type[messages.Message], Handler]:
        """Updates has its own entry points: `admit`, `is_genuine` and `update`. The driver handles others."""
        return {
            messages.Hello: self._connections.on_hello,
            messages.Refuse: self._connections.on_refuse,
            messages.Bye: self._connections.on_bye,
            messages.Ping: self._failure_detection.on_ping,
            messages.Ack: self._failure_detection.on_ack,
            messages.PingRequest: self._failure_detection.on_ping_request,
            messages.Nack: self._failure_detection.on_nack,
            messages.Suspect: self._failure_detection.on_suspect,
            messages.Gossip: self._membership.on_gossip,
            messages.Deleted: self._replicas.on_deleted,
            messages.Manifest: self._on_manifest,
            messages.Request: self._rounds.on_request,
            messages.Observed: self._correction.on_observed,
            messages.Inputs: self._interference.on_inputs,
            messages.Stopping: self._departure.on_stopping,
        }

    # -- queries -----------------------------------------------------------------------------------
    @property
    def own(self) -> Record | None:
        return self._state.own

    @property
    def round(self) -> int:
        return self._state.round

    @property
    def closed(self) -> int:
        """The last round that is closed; -1: none."""
        return self._state.closed

    @property
    def phase(self) -> Phase:
        return self._state.phase

    @property
    def blocks(self) -> dict[BlockKey, Record]:
        return self._state.blocks

    @property
    def members(self) -> Membership:
        return self._state.members

    @property
    def peers(self) -> dict[str, Peer]:
        return self._state.peers

    @property
    def exchange(self) -> Exchange:
        return self._state.exchange

    @property
    def signed_versions(self) -> bool:
        """Whether only the owner of a block makes its versions, and signs them."""
        return self._state.mode.shared_versions

    # -- time and signals --------------------------------------------------------------------------
    def start(self, now: int) -> list[Action]:
        """The process has started and its socket is bound."""
        self._membership.restore_ended()
        self._membership.restore_wishes()
        self._failure_detection.start(now)
        self._anti_entropy.start(now)
        self._state.timers["settle"] = now + int(self._state.config.membership.settle_s * SECOND)
        if not self._connections.call_seeds(now):
            self._membership.claim(now)
        return self._done(now)

    def next_timer_ns(self) -> int | None:
        return min(self._state.timers.values(), default=None)

    def tick(self, now: int) -> list[Action]:
        """Run the timers that are due."""
        for name in [name for name, at in self._state.timers.items() if at <= now]:
            del self._state.timers[name]
            self._timers[name](now)
        return self._done(now)

    def signal(self, now: int, kind: str) -> list[Action]:
        """leave (SIGTERM), retire (SIGINT) or end: the launcher ends the run for all devices."""
        self._departure.signal(now, kind)
        return self._done(now)

    def leaves(self, now: int, records: Iterable[Record]) -> list[Action]:
        """The testbed delivers leaves that nobody has confirmed. They are verified as gossip is."""
        self._membership.on_leaves(now, records)
        return self._done(now)

    # -- the learner -------------------------------------------------------------------------------
    def trained(
        self,
        now: int,
        changed: Iterable[Part],
        budget_bytes: int,
        supply: Supply | None = None,
        outages: frozenset[str] = frozenset(),
        near: Near = MappingProxyType({}),
    ) -> list[Action]:
        """The local steps of this round are done. `changed`: parts that the last mixing has changed.

        `supply`: the resources of the round, where an allocator decides. `outages`: peers to which no data
        goes in this round. `near`: by peer and part, whether the peer's assumption of the own copy is within
        the tolerance.
        """
        self._rounds.trained(now, changed, budget_bytes, supply, outages, near)
        return self._done(now)

    def diagnosed(self, now: int, epoch: int, values: Iterable[float]) -> list[Action]:
        """The measurements after round `epoch` are done (correction/residuals.py)."""
        self._correction.diagnosed(epoch, values)
        return self._done(now)

    def inputs_measured(self, now: int, values: Mapping[BlockKey, bytes]) -> list[Action]:
        """The second moments of the own inputs are measured, packed for each owner of a block."""
        self._interference.measured(values)
        return self._done(now)

    # -- updates -----------------------------------------------------------------------------------
    def admit(self, source: str, header: messages.Update) -> str | None:
        """Whether a fragment of an update may be assembled; returns the reason of a refusal, or None.

        It looks at the header only, so that a refused update costs no memory. The signature covers the whole
        payload, so `is_genuine` checks it after the assembly.
        """
        state, block = self._state, BlockKey(header.block, header.block_incarnation)
        peer = state.peers.get(source)
        if header.round >= state.config.round.count:
            return "malformed"
        if peer is None or not peer.greeted:
            return "stranger"
        if state.members.tombstoned(block):
            return "tombstoned"
        if block not in state.blocks:
            return "unknown"
        if state.own is not None and block == state.own.key and state.mode.shared_versions:
            return "own"
        return None

    def update(
        self,
        now: int,
        source: str,
        header: messages.Update,
        matrix: object,
        payload: bytes | bytearray | memoryview,
    ) -> list[Action]:
        """An admitted and genuine update is complete. `matrix`: the decoded payload.

        A later round may wait for manifests only, so a copy that is kept for its round leads to no action.
        """
        part = Part(BlockKey(header.block, header.block_incarnation), header.group)
        values = matrix
        if self.signed_versions:
            values = SignedCopy(matrix, bytes(payload), header.signature or b"")
        self._state.saw_round(header.round, source)
        if self._joining.replaces_copy(part, header.cause):
            self._joining.adopt_copy(source, part, Arrival(header.version, values))
            return self._done(now)
        self._state.exchange.on_copy(source, part, header.version, header.round, values)
        return []

    def is_genuine(self, header: messages.Update, payload: bytes | bytearray | memoryview) -> bool:
        """Whether the owner of the block has signed this version, where versions are signed."""
        if not self.signed_versions:
            return True
        part = Part(BlockKey(header.block, header.block_incarnation), header.group)
        record = self._state.members.get(part.block)
        signed = statement(part, header.version, header.codec, payload)
        return record is not None and self._verify(record.public, signed, header.signature or b"")

    # -- control messages --------------------------------------------------------------------------
    def on_message(self, now: int, source: str, message: messages.Message) -> list[Action]:
        """A control message has arrived."""
        peer, handler = self._state.peers.get(source), self._handlers.get(type(message))
        if not isinstance(message, BEFORE_GREETING):
            if peer is None or not peer.greeted:
                self._on_stranger(now, source, message)
                return self._done(now)
            peer.heard_ns = now
        if handler is not None:
            handler(now, source, message)
        return self._done(now)

    def _on_stranger(self, now: int, source: str, message: messages.Message) -> None:
        """Drop a message of a device that was not greeted.

        If the device is a member, it is greeted, and its ping is answered.
        """
        if self._connections.recall(now, source) and isinstance(message, messages.Ping):
            self._failure_detection.on_ping(now, source, message)
        else:
            self._state.act(Drop("stranger"))

    def abandon_message(self, now: int, source: str) -> list[Action]:
        """The handling of a message of `source` failed: disconnect it, and hold the blocks of the table.

        Returns also the actions that were decided before the fault: the state already includes them.
        """
        self._connections.disconnect(source)
        self._replicas.sync(now)
        return self._done(now)

    def _on_manifest(self, now: int, source: str, manifest: messages.Manifest) -> None:
        if self._rounds.on_manifest(now, source, manifest):
            self._joining.on_manifest(source, manifest)

    def _on_probe(self, now: int) -> None:
        self._failure_detection.on_probe(now)
        self._anti_entropy.on_probe(now)

    def _on_settle(self, now: int) -> None:
        if self._state.own is None:
            self._membership.claim(now)
        self._rounds.begin_unsettled(now)

    def _done(self, now: int) -> list[Action]:
        """After every event: do what it has made possible, then return all actions."""
        self._joining.try_ask(now)
        self._interference.notice_event()
        self._rounds.try_begin(now)
        self._rounds.try_publish()
        self._rounds.try_close(now)
        self._departure.try_end(now)
        self._rounds.try_exit()
        self._failure_detection.refresh()
        return self._state.flush()
