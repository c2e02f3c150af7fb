"""The state of one device, which all topics of its protocol share (state_machine.py lists the topics)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coordinator_free.averaging import topology
from coordinator_free.averaging.mixing import MODES
from coordinator_free.correction.residuals import Size
from coordinator_free.identifiers import BlockKey, Part
from coordinator_free.membership.signed_records import Record, Status, Verify
from coordinator_free.membership.slots import Quarantine
from coordinator_free.membership.table import Membership
from peers.config import DeviceConfig
from peers.protocol.actions import Action, Export, Log, Snapshot, Tell
from peers.protocol.exchange import Exchange
from peers.protocol.overhead_offset import PartBytes
from peers.protocol.phases import TRANSITIONS, Phase
from peers.protocol.send_allocation import send_allocation
from peers.protocol.similar_copies import foreign_codec
from transport.security.mask_keys import MaskKey
from transport.wire.limits import MAX_DELETED, MAX_GOSSIP, RECORD_BYTES
from transport.wire.messages import Deleted, Gossip, Manifest, Message

SECOND = 1_000_000_000
FEW_LINES = 64  # the same of `refused`, which anyone can cause
ALL_LINES = 10_000  # lines of one event in events.jsonl that are all written
AHEAD = 2  # rounds from the network's round to the first round of a newcomer, at most


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of this device and the facts of its start."""

    device: str  # device id
    address: str  # endpoint under which others reach it
    public: bytes  # public half of the key that signs its records
    seeds: tuple[str, ...]  # endpoints of devices that may be there already
    cohort: int  # devices that start together; 0: join the devices that are there
    snapshot_every: int  # rounds between snapshots; 0: none
    resumes: tuple[tuple[str, int], ...] = ()  # blocks in the checkpoint: owner and slot, the newest last
    wishes: tuple[Record, ...] = ()  # leaves of its earlier lives that nobody has confirmed
    signer_of: Callable[[str], bytes | None] = lambda device: None  # the allow-list (admission.py)
    run: str = ""  # the name of the run, equal on all its devices; "": it has none
    first_round: int = 0  # of the devices that start together; > 0: the run goes on after an interruption
    ended: tuple[Record, ...] = ()  # incarnations that ended before the interruption
    correct_until: int = -1  # last round of the correction that the interruption cut


@dataclass(slots=True)
class Peer:
    """A device to which this device has a link. Times are ns of this device's clock.

    connections.py changes the fields, with three exceptions: state_machine.py also sets `heard_ns`, rounds.py
    `manifests` and `dismissed`, and `DeviceState.tell_table` sets `table_ns`, `answered_ns` and `left_out`.
    """

    address: str  # endpoint of the link
    heard_ns: int  # arrival of its last control message; an idle link closes
    since_ns: int = 0  # when this device opened the link
    greeted: bool = False  # hellos have been exchanged and fit
    greet_again_ns: int = 0  # when to repeat a hello that was not answered
    greet_pause_ns: int = SECOND  # pause before that repetition; it doubles
    refused: bool = False  # its bases or capabilities differ from this device's
    refuses: bool = False  # it has refused this device's hello
    round: int = -1  # latest round that it has said to have reached; changed by `saw_round`
    done: bool = False  # it sends no more data: no round waits for it
    finished: bool = False  # it is done because it has closed its last round
    parting: bool = False  # it leaves or retires: this device tells it nothing more
    dismissed: bool = False  # this device has sent it its last message
    silent: bool = False  # it has sent its last message
    digest: bytes = b""  # digest of its membership table, as last told; b"": unknown
    differing: tuple[bytes, bytes] = (b"", b"")  # its digest and the own one, which differed when last seen
    differs_ns: int = 0  # since when these two stand
    table_ns: int = 0  # when this device last sent it its whole table; at first, when the link opened
    answered_ns: int = -SECOND * 3600  # when this device last sent it a table
    left_out: frozenset[bytes] = frozenset()  # the names that were left out of that table
    manifests: dict[int, Manifest] = field(default_factory=dict)  # by round, of this round and later ones


class DeviceState:
    """The state of one device, the actions of the event in progress, and queries that several topics need.

    `phase` changes only through `enter`, the round of a peer only through `saw_round`.
    """

    def __init__(
        self,
        me: Identity,
        config: DeviceConfig,
        sizes: Mapping[str, Size],
        part_bytes: PartBytes,
        sign: Callable[[bytes], bytes],
        verify: Verify,
    ) -> None:
        # Constant for the life of the device.
        self.me = me
        self.config = config
        self.sizes = sizes  # dimensions of each group's matrices
        self.mode = MODES[config.mixing.mode]()  # mixing mode; stateless

        # State that has its own class.
        # Membership table; membership.py merges records into it.
        self.members = Membership(verify, sign, me.device, me.public)
        self.exchange = Exchange(  # versions
            *(self.mode, sizes, part_bytes),
            *(send_allocation(config.radio, config.seed, me.device), foreign_codec(config)),
        )
        self.quarantine = Quarantine(int(config.membership.quarantine_s * SECOND))  # slots that are barred

        self.phase = Phase.SETTLE  # changed by `enter`
        self.round = -1  # own round; -1: none has begun; rounds.py
        # Last round that is closed; before the first one: the round before it; rounds.py.
        self.closed = me.first_round - 1
        self._own_round = -1  # latest round that this device has reached; changed by `saw_round`
        self.network_round = -1  # latest round of the network; changed by `saw_round`
        self.own: Record | None = None  # own membership record; None: no slot yet; membership.py, `announce`
        self.mask_key: MaskKey | None = None  # of the own incarnation; None: without masks; membership.py
        self.peers: dict[str, Peer] = {}  # links, by device id, or by "?n" for a seed; connections.py
        self.blocks: dict[BlockKey, Record] = {}  # blocks that are held, the own one included; replicas.py
        self.timers: dict[str, int] = {}  # when each timer is due, ns; the topic that owns the timer sets it
        # Own last records that too few devices have confirmed, with the devices that have; membership.py.
        self.unconfirmed: dict[BlockKey, Record] = {}
        self.confirmed_by: dict[BlockKey, set[str]] = {}
        self.exported: set[BlockKey] | None = (
            None  # blocks of the saved adapter; None: none is saved; `export`
        )
        self.correct_until = -1  # last round of the correction; `start_correction`
        self.events = 0  # corrections started; `start_correction`
        self.corrected_at: set[int] = set()  # last rounds of corrections, for snapshots; `start_correction`

        self._lines: Counter[str] = Counter()  # lines of each event so far; `log`
        self._out: list[Action] = []  # actions of the event in progress; `act`, `flush`
        self._training: tuple[tuple[int, int], tuple[str, ...]] = ((-1, -1), ())  # cache of `training`
        self._shape = config.topology.shape(config.seed)

    # -- phase and round ---------------------------------------------------------------------------
    def enter(self, phase: Phase) -> None:
        """Change the phase. Raises ValueError for a transition that is not in TRANSITIONS."""
        if phase not in TRANSITIONS[self.phase]:
            raise ValueError(f"a device in phase {self.phase.value} cannot enter phase {phase.value}")
        self.phase = phase

    def saw_round(self, round_: int, source: str | None = None) -> None:
        """A peer says that it has reached this round. `source` None: this device itself has.

        A peer only speaks for itself. So the network's round is at most one round after the latest round that
        more than half of the training peers have reached.
        """
        if source is None:
            self._own_round = max(self._own_round, round_)
        elif source in self.peers:
            self.peers[source].round = max(self.peers[source].round, round_)
        rounds = [peer.round for peer in self.peers.values() if peer.greeted and peer.round >= 0]
        agreed = min(max(rounds), majority(rounds) + 1) if rounds else -1
        self.network_round = self.members.network_round = max(self._own_round, agreed)

    def round_of_neighbours(self) -> int:
        """One round after the latest that more than half of the training neighbours have reached.

        A neighbour that has not greeted this device has reached none (-1). Otherwise the members that greet
        first could name any round.
        """
        training = {name for name, record in self.members.alive().items() if record.since_round >= 0}
        around = self.graph(sorted(training | {self.me.device}))[self.me.device]
        rounds = [self.peers[name].round if name in self.peers else -1 for name in around]
        return majority(rounds) + 1 if rounds else self.network_round

    # -- members -----------------------------------------------------------------------------------
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
        """The learning graph of the scenario over these members."""
        return topology.build(tuple(members), self._shape)

    def training(self) -> tuple[str, ...]:
        """The devices that train in this round, this device included, in order of id."""
        now = self.members.changes, self.round
        if self._training[0] != now:
            names = {*self.members.training(self.round), self.me.device}
            self._training = now, tuple(sorted(names))
        return self._training[1]

    def resumes(self, record: Record) -> bool:
        """Whether a block starts from the checkpoint. Only before the first round of any device.

        That is the block of an owner that goes on in its first incarnation of this run, or the block that an
        owner left behind. The next incarnation after a leave starts at B = 0.
        """
        held = (record.device, record.slot) in self.me.resumes
        return held and self._goes_on(record) and max(self.round, self.network_round) < 0

    def _goes_on(self, record: Record) -> bool:
        ended = {r.incarnation: r for r in self.me.ended if r.device == record.device}
        before = ended.get(max(ended, default=-1))
        first = 0 if before is None else before.incarnation + 1
        continued = before is None or before.status is Status.WITHDRAWN
        return record.incarnation in ended or (continued and record.incarnation == first)

    @property
    def resumed_slot(self) -> int | None:
        """The slot of the own block in the checkpoint."""
        own = [slot for device, slot in self.me.resumes if device == self.me.device]
        return own[-1] if own else None

    def slot_lost(self) -> bool:
        """Whether another device holds the own slot with an earlier claim."""
        losers = self.members.slot_losers(self.keep_crashed)
        return self.own is not None and any(record.key == self.own.key for record in losers)

    def missing(self) -> list[Part]:
        """Foreign parts without a copy here. A block whose owner does not train yet is B = 0: not missing."""
        own = None if self.own is None else self.own.key
        trained = {key for key, record in self.blocks.items() if record.since_round >= 0 and key != own}
        held = sorted(self.exchange.held.items())
        zero = self.exchange.zero
        return [part for part, version in held if version < 0 and part.block in trained and part not in zero]

    # -- correction --------------------------------------------------------------------------------
    def start_correction(self, from_round: int) -> None:
        """Correct in the `correction.rounds` rounds after `from_round`; not before the own first round.

        A newcomer names `from_round` itself. It counts at most AHEAD rounds after the network's round.
        """
        if self.round >= 0 and self.config.correction.rounds:
            from_round = min(from_round, self.network_round + AHEAD)
            self.correct(from_round + self.config.correction.rounds)

    def correct(self, until: int) -> None:
        """Correct up to the round `until`, included."""
        self.correct_until = max(self.correct_until, until)
        self.events += 1
        self.corrected_at.add(until)

    @property
    def work(self) -> str:
        """The kind of this round: "train" or "correction"."""
        return "correction" if self.round <= self.correct_until else "train"

    def damping(self) -> float:
        """The share of the own move over this round that is kept.

        Neighbours replace their copies by a refitted block and do not average it. So the move that is sent
        with it is damped to 1/members, as averaging would do.
        """
        members = len(self.training())
        refitted = self.exchange.refitted()
        return 1 / members if refitted else self.mode.damping(members, self.config.mixing.omega)

    # -- files -------------------------------------------------------------------------------------
    def export(self) -> None:
        """Save the adapter of the last closed round; at the end of the run also for the evaluator."""
        run_over = self.phase is Phase.FINISH
        if run_over and self.me.snapshot_every:
            self.act(Snapshot(max(self.closed, 0), "end"))
        self.act(Export(run_over))
        self.exported = set(self.blocks)

    # -- actions -----------------------------------------------------------------------------------
    def act(self, *actions: Action) -> None:
        """Append actions for the driver."""
        self._out.extend(actions)

    def tell(self, peer: str, message: Message) -> None:
        """Send a control message, unless the peer has had this device's last message."""
        known = self.peers.get(peer)
        if known is None or not known.dismissed:
            self.act(Tell(peer, message))

    def tell_all(self, message: Message, but: str | None = None) -> None:
        """Send a control message to all greeted peers except `but`."""
        for name in self.greeted():
            if name != but:
                self.tell(name, message)

    def gossip(self, records: Iterable[Record]) -> Gossip:
        return Gossip([record.to_dict() for record in records], False, self.round)

    def withdrawn(self) -> bool:
        """Whether the own record is withdrawn: the device lost its slot and waits for another one."""
        recorded = None if self.own is None else self.members.get(self.own.key)
        return recorded is not None and recorded.status is Status.WITHDRAWN

    def announce(self, record: Record) -> None:
        """Replace the own record and tell it to all greeted peers."""
        self.own = record
        self.tell_all(self.gossip([record]))

    def tell_table(
        self, now: int, peer: str, reply: bool = False, known: frozenset[bytes] = frozenset()
    ) -> None:
        """Send the membership table to a peer. `reply`: ask for the peer's table.

        known: the names of records that the peer has. They are left out, with two exceptions: tombstones, and
        the peer's own records, whose arrival here the peer may wait for. One message takes at most a quarter
        of a round's budget. An empty table is told too.
        """
        unnamed = {record.key for record in self.members.unnamed(known)}
        records = [r for r in self.members if r.key in unnamed or r.status is Status.LEFT or r.device == peer]
        size = max(1, min(MAX_GOSSIP, self.config.radio.budget_bytes // 4 // RECORD_BYTES))
        for start in range(0, len(records), size) or [0]:
            part = records[start : start + size]
            last = start + size >= len(records)
            self.tell(peer, replace(self.gossip(part), reply=reply and last))
        departed = self.quarantine.confirmations(now, {*self.members.active()})
        if departed:
            self.tell(peer, Deleted(departed[:MAX_DELETED]))
        link = self.peers[peer]
        link.answered_ns, link.left_out = now, known
        if not known:
            link.table_ns = now

    def log(self, event: str, **fields: Any) -> None:
        """Write a line of events.jsonl.

        Peers cause some lines. The first ALL_LINES (or FEW_LINES) of an event are written, then the 2nd, 4th,
        8th, ... more.
        """
        self._lines[event] += 1
        more = self._lines[event] - (FEW_LINES if event == "refused" else ALL_LINES)
        if more <= 0 or more & (more - 1) == 0:
            self.act(Log(event, fields))

    def flush(self) -> list[Action]:
        """Return and clear the actions of the event."""
        out, self._out = self._out, []
        return out


def majority(rounds: Collection[int]) -> int:
    """The latest round that more than half have reached."""
    return sorted(rounds, reverse=True)[len(rounds) // 2]
