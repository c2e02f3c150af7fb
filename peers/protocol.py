"""The device as a state machine: events and the time in, actions out. No sockets, no sleeping, no tensors.

settle / join -> (train -> wait for manifests)* -> finish -> gone. Membership, suspicion and gossip run beside
the rounds in every state (method 5 and 9).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from coordinator_free import topology
from coordinator_free.membership import Change, Key, Membership, Record, Status, Verify
from coordinator_free.mixing import MODES, Arrival, Mix, Part, metropolis_row
from peers.actions import (
    Action,
    AddBlock,
    Apply,
    Connect,
    Disconnect,
    Drop,
    DropBlock,
    Exit,
    Export,
    Farewell,
    Log,
    Meet,
    OwnBlock,
    Publish,
    RoundDone,
    Snapshot,
    Tell,
    Train,
)
from peers.config import DeviceConfig
from peers.exchange import ZERO, Exchange
from transport.messages import Bye, Gossip, Hello, Manifest, Message, Ping, Refuse, Request, Update

SECOND = 1_000_000_000
MAX_LAMPORT = 1 << 48  # a table that is told more could never count on
FINISH_GRACE_S = 10.0  # longest wait for the others' Bye after the last round


class State(Enum):
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


@dataclass(slots=True)
class Peer:
    """A device this one talks to."""

    address: str
    heard_ns: int
    greeted: bool = False
    done: bool = False
    manifests: dict[int, Manifest] = field(default_factory=dict)


class DeviceProtocol:
    """One device's decisions. `part_bytes(group)`: what a (block, group) costs on the wire."""

    def __init__(
        self,
        me: Identity,
        config: DeviceConfig,
        fingerprint: dict[str, Any],
        difference: Callable[[dict[str, Any]], str | None],
        groups: Iterable[str],
        part_bytes: Callable[[str], int],
        sign: Callable[[bytes], bytes],
        verify: Verify,
    ) -> None:
        self.me, self.config = me, config
        self.members = Membership(verify, sign)
        self.mode = MODES[config.mixing.mode]()
        self.exchange = Exchange(self.mode, groups, part_bytes)
        self.state = State.SETTLE
        self.round = -1
        self.own: Record | None = None
        self.peers: dict[str, Peer] = {}
        self.blocks: dict[Key, Record] = {}
        self.network_round = -1
        self.correct_until = -1
        self._corrected_at: set[int] = set()
        self._fingerprint, self._difference = fingerprint, difference
        self._timers: dict[str, int] = {}
        self._tick_ns = 0
        self._out: list[Action] = []
        self._start_ns = self._trained_ns = 0
        self._withheld = self._asked = 0
        self._shape = topology.Shape(
            config.topology.kind, config.topology.chords, config.topology.radius, config.seed
        )

    # -- events ------------------------------------------------------------------------------------
    def start(self, now: int) -> list[Action]:
        """The process is up and bound."""
        self._tick_ns = now
        self._timers["heartbeat"] = now + int(self.config.membership.heartbeat_s * SECOND)
        self._timers["settle"] = now + int(self.config.membership.settle_s * SECOND)
        seeds = [s for s in self.me.seeds if s != self.me.address]
        for index, address in enumerate(seeds):
            self._connect(f"?{index}", address, now)
        if not seeds:
            self._claim(now)
        self._try_begin(now)
        return self._flush()

    def next_timer_ns(self) -> int | None:
        return min(self._timers.values(), default=None)

    def tick(self, now: int) -> list[Action]:
        """A timer is due."""
        due = [name for name, at in self._timers.items() if at <= now]
        for name in due:
            del self._timers[name]
            getattr(self, f"_on_{name}")(now)
        return self._flush()

    def trained(self, now: int, changed: Iterable[Part], budget_bytes: int) -> list[Action]:
        """The local steps of this round are done; `changed`: copies that the last mixing moved."""
        if self.state is not State.TRAIN or self.own is None:
            return self._flush()
        for part in changed:
            if part in self.exchange.held and not self.mode.shared_versions:
                self.exchange.held[part] = self.round
        for part in self.exchange.parts(self.own.key):
            self.exchange.held[part] = self.round
        self.state, self._trained_ns = State.WAIT, now
        self._publish(budget_bytes)
        self._try_close(now)
        return self._flush()

    def signal(self, now: int, kind: str) -> list[Action]:
        """leave (SIGTERM) or retire (SIGINT). After the last round either is only an exit."""
        if self.state in (State.FINISH, State.GONE) or self.own is None:
            return [Exit(0, "finished" if self.state is State.FINISH else "gone")]
        status = Status.LEFT if kind == "leave" else Status.RETIRED
        self.own = self.members.amend(self.own, status=status)
        self._log("leaving", kind=kind, round=self.round)
        self._tell_all(self._gossip([self.own], reply=False))
        if kind == "retire":
            self._out.append(Export())
        self._say_farewell(kind)
        self.state = State.GONE
        self._out.append(Exit(0, kind))
        return self._flush()

    def accepts(self, source: str, block: Key) -> str | None:
        """Why data of a block from a neighbour is not taken in; None: it is."""
        peer = self.peers.get(source)
        if peer is None or not peer.greeted:
            return "stranger"
        if self.members.tombstoned(block):
            return "tombstoned"
        if block not in self.blocks:
            return "unknown"
        if self.own is not None and block == self.own.key and self.mode.shared_versions:
            return "own"
        return None

    def update(self, now: int, source: str, header: Update, values: object) -> list[Action]:
        """A whole (block, group) matrix has arrived; it was accepted before."""
        key = Key(header.block, header.block_incarnation)
        part = Part(key, header.group)
        if header.cause == "transfer" and self.state is State.JOIN:
            self._take_transfer(now, source, part, Arrival(header.version, values))
        else:
            self.exchange.receive(source, part, header.version, header.round, values)
        return self._flush()

    def receive(self, now: int, source: str, incarnation: int, message: Message) -> list[Action]:
        """A control message."""
        if isinstance(message, Hello):
            self._on_hello(now, source, message)
            return self._flush()
        if isinstance(message, Refuse):
            self._log("refused", by=source, reason=message.reason)
            if self.own is None or self.round < 0:
                self._out.append(Exit(1, f"{source} refused {self.me.device}: {message.reason}"))
            return self._flush()
        peer = self.peers.get(source)
        if peer is None or not peer.greeted:
            return [Drop("stranger")]
        peer.heard_ns = now
        self._heard_of(source, incarnation)
        match message:
            case Gossip():
                self._on_gossip(now, source, message)
            case Manifest():
                self._on_manifest(now, source, peer, message)
            case Request():
                wants = (Part(Key(b, i), g) for b, i, g, _ in message.items)
                self.exchange.peer(source).wants |= {p for p in wants if p in self.exchange.held}
            case Ping() if message.reply:
                self._tell(source, Ping(self.round, False))
            case Bye():
                peer.done = True
                self._try_close(now)
                self._try_exit()
        return self._flush()

    # -- meeting -----------------------------------------------------------------------------------
    def _on_hello(self, now: int, source: str, hello: Hello) -> None:
        difference = self._difference(hello.fingerprint)
        if source == self.me.device:
            difference = f"another device runs under the id {source}"
        known = self.peers.get(source)
        if known is None or known.address != hello.address:
            self._connect(source, hello.address, now)
        if difference is not None:
            self._log("refused", peer=source, reason=difference)
            self._tell(source, Refuse(difference[:512]))
            self._out.append(Drop("refused"))
            return
        for alias in [p for p, peer in self.peers.items() if p[0] == "?" and peer.address == hello.address]:
            del self.peers[alias]
            self._out.append(Meet(alias, source))
        self.network_round = max(self.network_round, hello.round)
        peer = self.peers[source]
        peer.greeted, peer.heard_ns = True, now
        if hello.reply:
            self._tell(source, self._hello(reply=False))
        # tombstones before any data: the whole table goes first on every (re)connection (method 9)
        self._tell(source, self._gossip(list(self.members), reply=False))
        self._try_begin(now)

    def _connect(self, peer: str, address: str, now: int) -> None:
        self.peers[peer] = Peer(address, now)
        self._out.append(Connect(peer, address))
        self._tell(peer, self._hello(reply=True))

    def _hello(self, reply: bool) -> Hello:
        return Hello(self.me.address, self._fingerprint, reply, [], self.round)

    # -- membership --------------------------------------------------------------------------------
    def _gossip(self, records: list[Record], reply: bool) -> Gossip:
        return Gossip([r.to_dict() for r in records], reply, self.round)

    def _on_gossip(self, now: int, source: str, gossip: Gossip) -> None:
        self.network_round = max(self.network_round, gossip.round)
        try:
            records = [Record.from_dict(r) for r in gossip.records]
            if any(r.slot >= self.config.adapter.max_devices or r.lamport > MAX_LAMPORT for r in records):
                raise ValueError("a slot or a time that cannot be")
        except (ValueError, TypeError):
            self._out.append(Drop("malformed"))
            return
        self._changed(now, self.members.merge(records), source)
        if gossip.reply:
            self._tell(source, self._gossip(list(self.members), reply=False))
        if self.own is None:
            self._claim(now)
        self._try_begin(now)

    def _changed(self, now: int, changes: list[Change], source: str | None) -> None:
        """Act on what a merge or a verdict changed, and pass it on."""
        if not changes:
            return
        self._tell_all(self._gossip([c.record for c in changes], reply=False), but=source)
        self._defend(now)
        self._sync_blocks()
        for change in changes:
            self._follow(now, change)
        self._connect_neighbours(now)
        self._try_close(now)
        self._try_exit()

    def _follow(self, now: int, change: Change) -> None:
        record = change.record
        if record.device == self.me.device:
            return
        newest = self.members.newest(record.device)
        if record.status is Status.ALIVE and (change.before is None or record.since_round >= 0):
            joined = change.before is None
            event = "peer_joined" if joined else "peer_trains"
            self._log(event, peer=record.device, incarnation=record.incarnation, slot=record.slot)
            if record.since_round > 0:
                self._start_correction(record.since_round)
        elif record.status in _GONE and newest is not None and newest.key == record.key:
            kind = _GONE[record.status]
            self._log("peer_gone", peer=record.device, incarnation=record.incarnation, kind=kind)
            self._disconnect(record.device)
            if record.status is not Status.WITHDRAWN:
                self._start_correction(self.round)

    def _start_correction(self, from_round: int) -> None:
        if self.round >= 0 and self.config.correction.rounds:
            self.correct_until = max(self.correct_until, from_round + self.config.correction.rounds)
            self._corrected_at.add(from_round + self.config.correction.rounds)

    def _sync_blocks(self) -> None:
        """Make the held blocks those of the table: the only place where blocks come and go."""
        wanted = self.members.blocks(keep_crashed=self.config.on_crash == "keep")
        for key in [k for k in self.blocks if k not in wanted]:
            record = self.members.get(key)
            forgotten = record is not None and record.status in (Status.LEFT, Status.CRASHED)
            shown = forgotten and self.round >= 0 and self.me.snapshot_every
            if shown:
                self._out.append(Snapshot(self.round, f"before:{key.device}"))
            self._out.append(DropBlock(key, _GONE.get(record.status, "moved") if record else "unknown"))
            self.exchange.drop(key)
            if shown:
                self._out.append(Snapshot(self.round, f"deleted:{key.device}"))
        for key, record in wanted.items():
            if key not in self.blocks and key.device != self.me.device:
                self._out.append(AddBlock(key, record.slot))
                self.exchange.add(key)
        self.blocks = wanted

    def _claim(self, now: int, carry: Key | None = None) -> None:
        """A new incarnation of this device on a free slot."""
        joins = self.network_round >= 0 or self.round >= 0
        since = -1 if joins and self.round < 0 else max(self.round, 0)
        me = self.me
        wish = None if carry is None else self._slot_of(carry)
        slots = self.config.adapter.max_devices
        record = self.members.claim(me.device, me.address, me.public, slots, since, wish)
        if self.round < 0 and joins:
            self.state = State.JOIN
        kept = carry if carry is not None and self._slot_of(carry) == record.slot else None
        self.own = record
        self._log("slot", incarnation=record.incarnation, slot=record.slot)
        self._out.append(OwnBlock(record.key, record.slot, kept))
        self.exchange.add(record.key)
        self._tell_all(self._gossip([record], reply=False))
        self._sync_blocks()
        self._connect_neighbours(now)
        self._ask_for_blocks(now)

    def _slot_of(self, key: Key) -> int | None:
        record = self.members.get(key)
        return None if record is None else record.slot

    def _defend(self, now: int) -> None:
        """Refute a verdict on the own incarnation; give a lost slot up."""
        if self.own is None or self.state is State.GONE:
            return
        recorded = self.members.get(self.own.key)
        lost = any(r.key == self.own.key for r in self.members.slot_losers(self.config.on_crash == "keep"))
        if recorded is not None and recorded.status is Status.ALIVE and not lost:
            return
        old = self.own.key
        withdrawn = self.members.amend(self.own, status=Status.WITHDRAWN)
        self._tell_all(self._gossip([withdrawn], reply=False))
        self._log("lost_slot" if lost else "refuted", incarnation=old.incarnation)
        self._claim(now, carry=None if lost else old)

    # -- neighbours and suspicion --------------------------------------------------------------------
    def _graph(self, members: Iterable[str]) -> topology.Graph[str]:
        return topology.build(list(members), self._shape)

    def neighbours(self) -> list[str]:
        """Those this device trains beside in this round, in order of id."""
        graph = self._graph({*self.members.training(self.round), self.me.device})
        return sorted(graph[self.me.device])

    def _connect_neighbours(self, now: int) -> None:
        alive = self.members.alive()
        if self.me.device not in alive:
            return
        for peer in sorted(self._graph(alive)[self.me.device]):
            if peer not in self.peers:
                self._connect(peer, alive[peer].address, now)

    def _disconnect(self, peer: str) -> None:
        if self.peers.pop(peer, None) is not None:
            self._out.append(Disconnect(peer))
        self.exchange.forget_peer(peer)

    def _heard_of(self, source: str, incarnation: int) -> None:
        """A message from an incarnation that this device holds for dead: tell it, so that it can refute."""
        record = self.members.get(Key(source, incarnation))
        if record is not None and record.status is Status.CRASHED:
            self._tell(source, self._gossip([record], reply=False))

    def _on_heartbeat(self, now: int) -> None:
        period = int(self.config.membership.heartbeat_s * SECOND)
        limit = int(self.config.membership.crash_after_s * SECOND)
        stalled = now - self._tick_ns > max(4 * period, limit // 2)
        self._tick_ns = now
        self._timers["heartbeat"] = now + period
        alive = self.members.alive()
        for name, peer in sorted(self.peers.items()):
            if stalled:  # it was this device that stood still: everyone else starts afresh
                peer.heard_ns = now
            if peer.greeted and not peer.done:
                self._tell(name, Ping(self.round, False))
            if name in alive and not peer.done and now - peer.heard_ns > limit:
                change = self.members.verdict(alive[name].key)
                self._log("suspected", peer=name, silent_s=(now - peer.heard_ns) / SECOND)
                self._changed(now, [change] if change else [], None)

    # -- rounds --------------------------------------------------------------------------------------
    def _on_settle(self, now: int) -> None:
        if self.own is None:
            self._claim(now)
        if self.state is State.SETTLE:
            self._log("unsettled", known=sorted(self.members.alive()), expected=self.me.cohort)
            self._begin(now, max(self.network_round, 0))

    def _try_begin(self, now: int) -> None:
        """Start the first round once the cohort is known, has its slots and has met its neighbours."""
        if self.state is not State.SETTLE or self.own is None:
            return
        alive = self.members.alive()
        met = all(p in self.peers and self.peers[p].greeted for p in self._graph(alive)[self.me.device])
        if (
            len(alive) >= self.me.cohort
            and met
            and not self.members.slot_losers(self.config.on_crash == "keep")
        ):
            self._begin(now, 0)

    def _ask_for_blocks(self, now: int) -> None:
        """Joining: ask one neighbour for what is missing; another one if that takes too long."""
        if self.state is not State.JOIN or self.own is None:
            return
        missing = [p for p, v in sorted(self.exchange.held.items()) if v < 0 and p.block != self.own.key]
        helpers = sorted(p for p, peer in self.peers.items() if peer.greeted and not peer.done)
        if not missing or not helpers:
            self._enter(now)
            return
        helper = helpers[self._asked % len(helpers)]
        self._asked += 1
        items = [(p.block.device, p.block.incarnation, p.group, ZERO) for p in missing]
        self._tell(helper, Request(items, self.round))
        self._timers["ask"] = now + int(self.config.round.deadline_s * SECOND)

    def _on_ask(self, now: int) -> None:
        self._ask_for_blocks(now)

    def _take_transfer(self, now: int, source: str, part: Part, copy: Arrival) -> None:
        self._out.append(Apply((Mix(part, ((1.0, copy.values),), copy.version),)))
        self.exchange.held[part] = copy.version
        self.exchange.peer(source).cache[part] = copy
        if self.own and all(v >= 0 for p, v in self.exchange.held.items() if p.block != self.own.key):
            self._enter(now)

    def _enter(self, now: int) -> None:
        """All blocks are here: train from the network's next round on."""
        assert self.own is not None
        self._timers.pop("ask", None)
        first = self.network_round + 2
        self.own = self.members.amend(self.own, since_round=first)
        self._tell_all(self._gossip([self.own], reply=False))
        self._begin(now, first)

    def _begin(self, now: int, first: int) -> None:
        self._timers.pop("settle", None)
        self.round = first
        if first:
            self._start_correction(first)
        held = [(p.block.device, p.block.incarnation, p.group, v, "unchanged") for p, v in self._held()]
        if first and self.mode.shared_versions:
            for name in [p for p, peer in self.peers.items() if peer.greeted]:
                self._tell(name, Manifest(first - 1, "train", self.members.view(), held))
        self._log("training", round=first, members=sorted(self.members.alive()))
        self._start_round(now, first)

    def _held(self) -> list[tuple[Part, int]]:
        return sorted(self.exchange.held.items())

    def _start_round(self, now: int, round_: int) -> None:
        self.round, self.state, self._start_ns = round_, State.TRAIN, now
        self.network_round = max(self.network_round, round_)
        self._timers["deadline"] = now + int(self.config.round.deadline_s * SECOND)
        members = len({*self.members.training(round_), self.me.device})
        damping = self.mode.damping(members, self.config.mixing.omega)
        rehearse = not self._correcting()
        self._out.append(Train(round_, self.config.round.local_steps, rehearse, damping))

    def _correcting(self) -> bool:
        return self.round <= self.correct_until

    def _publish(self, budget_bytes: int) -> None:
        assert self.own is not None
        phase = "correction" if self._correcting() else "train"
        receivers = {p for p, peer in self.peers.items() if peer.greeted and not peer.done}
        wanting = {p for p in receivers if self.exchange.peer(p).wants}
        plans = self.exchange.plan(
            self.own.key, receivers & ({*self.neighbours()} | wanting), budget_bytes, phase
        )
        view = self.members.view()
        for peer, plan in plans.items():
            manifest = Manifest(self.round, phase, view, list(plan.items))
            self._out.append(Publish(peer, self.round, plan.parts, manifest))
        self._withheld = sum(plan.withheld for plan in plans.values())

    def _on_manifest(self, now: int, source: str, peer: Peer, manifest: Manifest) -> None:
        peer.manifests[manifest.round] = manifest
        self.network_round = max(self.network_round, manifest.round)
        self.exchange.note(source, manifest)
        if manifest.view != self.members.view():
            self._tell(source, self._gossip(list(self.members), reply=False))
        self._try_close(now)

    def _on_deadline(self, now: int) -> None:
        if self.state is State.WAIT:
            self._close(now)
        elif self.state is State.TRAIN:
            self._timers["deadline"] = (
                now + SECOND // 10
            )  # own steps are late: close as soon as they are done

    def _try_close(self, now: int) -> None:
        if self.state is not State.WAIT:
            return
        for name in self.neighbours():
            peer = self.peers.get(name)
            if peer is None or not (peer.done or self.round in peer.manifests):
                return
        self._close(now)

    def _close(self, now: int) -> None:
        assert self.own is not None
        members = tuple(sorted({*self.members.training(self.round), self.me.device}))
        row = metropolis_row(self._graph(members), self.me.device)
        heard = {n: p.manifests[self.round] for n, p in self.peers.items() if self.round in p.manifests}
        weights = {n: self.config.mixing.gamma * w for n, w in row.items() if n in heard}
        self._out.append(Apply(self.exchange.close(self.own.key, self.round, weights, heard)))
        phase = "correction" if self._correcting() else "train"
        times = (self._start_ns, self._trained_ns, now)
        self._out.append(RoundDone(self.round, phase, *times, weights, self._withheld, members))
        self._snapshots()
        latest = max((max(p.manifests, default=-1) for p in self.peers.values()), default=-1)
        following = max(self.round + 1, latest)  # others went on at their deadline: catch up
        for peer in self.peers.values():
            peer.manifests = {r: m for r, m in peer.manifests.items() if r >= following}
        if following < self.config.round.count:
            self._start_round(now, following)
        else:
            self._finish(now)

    def _snapshots(self) -> None:
        every = self.me.snapshot_every
        if every and (self.round + 1) % every == 0:
            self._out.append(Snapshot(self.round, "round"))
        if every and self.round in self._corrected_at:
            self._out.append(Snapshot(self.round, "corrected"))

    # -- the end -------------------------------------------------------------------------------------
    def _finish(self, now: int) -> None:
        self.state = State.FINISH
        self._timers.pop("deadline", None)
        if self.me.snapshot_every:
            self._out.append(Snapshot(self.round, "end"))
        self._out.append(Export())
        self._say_farewell("finished")
        self._timers["grace"] = now + int(FINISH_GRACE_S * SECOND)
        self._try_exit()

    def _say_farewell(self, reason: str) -> None:
        self._out.extend(Farewell(name, reason) for name, p in sorted(self.peers.items()) if p.greeted)

    def _on_grace(self, now: int) -> None:
        self.state = State.GONE
        self._out.append(Exit(0, "finished; not all others said goodbye"))

    def _try_exit(self) -> None:
        if self.state is not State.FINISH:
            return
        alive = self.members.alive()
        if all(p.done for name, p in self.peers.items() if name in alive):
            self.state = State.GONE
            self._out.append(Exit(0, "finished"))

    # -- small ---------------------------------------------------------------------------------------
    def _tell(self, peer: str, message: Message) -> None:
        self._out.append(Tell(peer, message))

    def _tell_all(self, message: Message, but: str | None = None) -> None:
        for name in sorted(n for n, p in self.peers.items() if p.greeted and n != but):
            self._tell(name, message)

    def _log(self, event: str, **fields: object) -> None:
        self._out.append(Log(event, fields))

    def _flush(self) -> list[Action]:
        out, self._out = self._out, []
        return out


_GONE = {
    Status.LEFT: "leave",
    Status.RETIRED: "retire",
    Status.CRASHED: "crash",
    Status.WITHDRAWN: "moved",
}
