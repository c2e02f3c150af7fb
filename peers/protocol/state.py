"""The state of one device, shared by the parts of its protocol (state_machine.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from coordinator_free.averaging import topology
from coordinator_free.averaging.mixing import MODES
from coordinator_free.correction.residuals import Size
from coordinator_free.identifiers import BlockKey, Part
from coordinator_free.membership.records import Record, Verify
from coordinator_free.membership.slots import Quarantine
from coordinator_free.membership.table import Membership
from peers.config import FIFO, DeviceConfig
from peers.protocol.actions import Action, Log, Tell
from peers.protocol.exchange import Exchange
from peers.protocol.overhead_offset import PartBytes
from peers.protocol.send_allocation import Allocating
from transport.wire.limits import MAX_DELETED, MAX_GOSSIP
from transport.wire.messages import Deleted, Gossip, Manifest, Message

SECOND = 1_000_000_000


class Phase(Enum):
    SETTLE = "settle"
    JOIN = "join"
    TRAIN = "train"
    WAIT = "wait"
    FINISH = "finish"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this device is and how it is reached."""

    device: str
    address: str
    public: bytes
    seeds: tuple[str, ...]
    cohort: int  # devices that start together; 0: whoever is there
    snapshot_every: int  # rounds between snapshots; 0: none
    resumes: Mapping[str, int] = field(default_factory=dict)  # slot by device: whose block a checkpoint holds


@dataclass(slots=True)
class Peer:
    """A device this one talks to."""

    address: str
    heard_ns: int
    greeted: bool = False
    greet_again_ns: int = 0  # when to say hello once more to one who has not answered
    greet_pause_ns: int = SECOND
    refused: bool = False
    done: bool = False  # it has said goodbye: nobody waits for it
    finished: bool = False  # ... after its last round
    parting: bool = False  # it leaves or retires: nothing more is told to it
    dismissed: bool = False  # it has had this device's last word: nothing more is told to it either
    silent: bool = False  # it has said its last word
    view: bytes = b""  # hash of the members that it last said it knows
    table_ns: int = -SECOND * 3600  # when it was last told all members that this device knows
    manifests: dict[int, Manifest] = field(default_factory=dict)


class DeviceState:
    """The state proper, the actions decided in the event at hand, and what all parts ask of both."""

    def __init__(
        self,
        me: Identity,
        config: DeviceConfig,
        sizes: Mapping[str, Size],
        part_bytes: PartBytes,
        sign: Callable[[bytes], bytes],
        verify: Verify,
    ) -> None:
        self.me, self.config, self.sizes = me, config, sizes
        self.members = Membership(verify, sign)
        self.mode = MODES[config.mixing.mode]()
        allocator = config.radio.allocator
        allocating = None if allocator == FIFO else Allocating(allocator, config.seed, me.device)
        self.exchange = Exchange(self.mode, sizes, part_bytes, allocating)
        self.phase = Phase.SETTLE
        self.round = self.network_round = -1
        self.own: Record | None = None
        self.peers: dict[str, Peer] = {}
        self.blocks: dict[BlockKey, Record] = {}
        self.timers: dict[str, int] = {}
        self.heard = False  # somebody has confirmed that it knows this device to go
        self.quarantine = Quarantine(int(config.membership.quarantine_s * SECOND))
        self.correct_until = -1
        self.events = 0  # that called for a correction
        self.corrected_at: set[int] = set()
        self._out: list[Action] = []
        self._training: tuple[tuple[int, int], tuple[str, ...]] = ((-1, -1), ())
        kind = config.topology
        self._shape = topology.Shape(kind.kind, kind.chords, kind.radius, config.seed)

    # -- who is there ------------------------------------------------------------------------------
    @property
    def keep_crashed(self) -> bool:
        return self.config.on_crash == "keep"

    def greeted(self) -> list[str]:
        """Peers that may be told something, in order of id."""
        return sorted(
            name
            for name, peer in self.peers.items()
            if peer.greeted and not peer.parting and not peer.dismissed
        )

    def graph(self, members: Iterable[str]) -> topology.Graph[str]:
        return topology.build(tuple(members), self._shape)

    def training(self) -> tuple[str, ...]:
        """Those that train in this round, this device among them."""
        now = self.members.changes, self.round
        if self._training[0] != now:
            names = {*self.members.training(self.round), self.me.device}
            self._training = now, tuple(sorted(names))
        return self._training[1]

    def resumes(self, record: Record) -> bool:
        """Whether a block goes on with what a checkpoint holds of it: before anybody's first round."""
        held = self.me.resumes.get(record.device) == record.slot
        return held and record.incarnation == 0 and max(self.round, self.network_round) < 0

    def slot_lost(self) -> bool:
        """Another device holds the own slot with the better claim."""
        losers = self.members.slot_losers(self.keep_crashed)
        return self.own is not None and any(record.key == self.own.key for record in losers)

    def missing(self) -> list[Part]:
        """Foreign parts of which no copy has come yet; a block whose owner does not train yet is B = 0."""
        own = None if self.own is None else self.own.key
        trained = {key for key, record in self.blocks.items() if record.since_round >= 0 and key != own}
        held = sorted(self.exchange.held.items())
        zero = self.exchange.zero
        return [part for part, version in held if version < 0 and part.block in trained and part not in zero]

    # -- correction --------------------------------------------------------------------------------
    def start_correction(self, from_round: int) -> None:
        if self.round >= 0 and self.config.correction.rounds:
            until = from_round + self.config.correction.rounds
            self.correct_until = max(self.correct_until, until)
            self.events += 1
            self.corrected_at.add(until)

    @property
    def work(self) -> str:
        """What this round is: "train" or "correction"."""
        return "correction" if self.round <= self.correct_until else "train"

    def damping(self) -> float:
        """The share of the own move over this round that is kept. A refit is taken over whole, not averaged:
        what goes with it is damped as averaging would have done."""
        members = len(self.training())
        refitted = self.exchange.refitted()
        return 1 / members if refitted else self.mode.damping(members, self.config.mixing.omega)

    # -- actions -----------------------------------------------------------------------------------
    def act(self, *actions: Action) -> None:
        self._out.extend(actions)

    def tell(self, peer: str, message: Message) -> None:
        known = self.peers.get(peer)
        if known is None or not known.dismissed:
            self.act(Tell(peer, message))

    def tell_all(self, message: Message, but: str | None = None) -> None:
        for name in self.greeted():
            if name != but:
                self.tell(name, message)

    def gossip(self, records: Iterable[Record]) -> Gossip:
        return Gossip([record.to_dict() for record in records], False, self.round)

    def announce(self, record: Record) -> None:
        """The own record as it is from now on, told to all."""
        self.own = record
        self.tell_all(self.gossip([record]))

    def tell_table(self, now: int, peer: str, reply: bool = False) -> None:
        """All members that are known. `reply`: it is asked for its own."""
        records = list(self.members)
        for start in range(0, len(records), MAX_GOSSIP) or [0]:
            part = records[start : start + MAX_GOSSIP]
            last = start + MAX_GOSSIP >= len(records)
            self.tell(peer, replace(self.gossip(part), reply=reply and last))
        departed = self.quarantine.confirmations(now, {*self.members.active()})
        if departed:
            self.tell(peer, Deleted(departed[:MAX_DELETED]))
        self.peers[peer].table_ns = now

    def log(self, event: str, **fields: Any) -> None:
        self.act(Log(event, fields))

    def flush(self) -> list[Action]:
        out, self._out = self._out, []
        return out
