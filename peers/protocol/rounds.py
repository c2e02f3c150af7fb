"""The rounds: train, publish, wait, mix; the start of the first round and the end of the last (method 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from coordinator_free.averaging.mixing import metropolis_row
from coordinator_free.averaging.rate_allocation import Transfer
from coordinator_free.identifiers import BlockKey, Part
from coordinator_free.membership.signed_records import Status
from peers.protocol.actions import (
    Apply,
    Drop,
    Exit,
    Farewell,
    Publish,
    RoundDone,
    Snapshot,
    Train,
)
from peers.protocol.block_survival import BlockSurvival
from peers.protocol.connections import Connections
from peers.protocol.correction import Correction
from peers.protocol.exchange import ZERO, Choose, Plan
from peers.protocol.phases import Phase
from peers.protocol.relaying import Relays
from peers.protocol.send_allocation import Supply
from peers.protocol.sent_count import SentCount
from peers.protocol.similar_copies import Layer, Near, applies
from peers.protocol.state import SECOND, DeviceState, majority
from transport.wire.limits import MAX_WISHES
from transport.wire.messages import Manifest, Request

FINISH_GRACE_S = 10.0  # longest wait for the others' Bye after the last round
MINORITY_STEP = 1  # rounds that a device skips at once if few of its neighbours are ahead
MANIFESTS = 4  # kept of a peer that is ahead
LATE_NS = SECOND // 10  # pause between checks whether local steps that overran the deadline are done


def _any_lag(peer: str, part: Part) -> int:
    return 1


class Rounds:
    """Decides when a round begins and closes, and what this device sends in it."""

    def __init__(
        self, state: DeviceState, connections: Connections, correction: Correction, survival: BlockSurvival
    ) -> None:
        self._state, self._connections, self._correction = state, connections, correction
        self._survival = survival
        self._start_ns = self._trained_ns = 0
        self._late_ns = 0  # time of the last rounds beyond one deadline for each round that they advanced
        self._sent = SentCount(state.config.radio.codec, state.exchange.part_bytes)
        self._left = 0  # bytes of this round's budget
        self._outages: frozenset[str] = frozenset()  # peers to which nothing is sent in this round
        self._near: Near = {}  # in this round
        self._served: set[str] = set()  # neighbours that have been sent this round's data
        self._answered: set[str] = set()  # peers whose requests of this round are answered

    # -- the first round ---------------------------------------------------------------------------
    def try_begin(self, now: int) -> None:
        """Begin the first round once the cohort is known, has its slots and has met its neighbours."""
        state = self._state
        if state.phase is not Phase.SETTLE or state.own is None:
            return
        if (
            not self._connections.gathers()
            and not state.members.slot_losers(state.keep_crashed)
            and self._connections.met_neighbours()
        ):
            self.begin(now, state.me.first_round)

    def begin_unsettled(self, now: int) -> None:
        """The cohort did not come together in time: begin with the members that are known."""
        state = self._state
        if state.phase is Phase.SETTLE and state.own is not None:
            state.log("unsettled", known=sorted(state.members.alive()), expected=state.me.cohort)
            self.begin(now, max(state.network_round, state.me.first_round))
            self._connections.connect_wanted(now)

    def begin(self, now: int, first: int) -> None:
        """Begin the first round of this device. A joiner tells the versions that it has received."""
        state = self._state
        state.timers.pop("settle", None)
        state.round, state.closed, joins = first, first - 1, first > state.me.first_round
        if joins:
            state.start_correction(first)
        elif state.me.correct_until >= first:
            state.correct(state.me.correct_until)
        if joins and state.mode.shared_versions:
            held = sorted(state.exchange.held.items())
            items = [(p.block.device, p.block.incarnation, p.group, v, "unchanged") for p, v in held]
            state.tell_all(Manifest(first - 1, "train", state.members.digest(), items))
        state.log("training", round=first, members=sorted(state.members.alive()))
        self._start_round(now, first)

    # -- one round ---------------------------------------------------------------------------------
    def _start_round(self, now: int, round_: int) -> None:
        state = self._state
        state.enter(Phase.TRAIN)
        state.round, self._start_ns = round_, now
        state.saw_round(round_)
        state.timers["deadline"] = now + int(state.config.round.deadline_s * SECOND)
        settings, rehearse = self._correction.settings(), state.work == "train"
        steps = max((a.steps for a in settings.values()), default=state.config.round.local_steps)
        anchor = self._correction.takes_anchor()
        fisher = state.config.correction.fisher and not rehearse
        state.act(Train(round_, steps, rehearse, state.damping(), settings, anchor, fisher))

    def trained(
        self,
        now: int,
        changed: Iterable[Part],
        budget_bytes: int,
        supply: Supply | None,
        outages: frozenset[str],
        near: Near,
    ) -> None:
        """The local steps are done: publish. `changed`: parts that the last mixing has changed.

        `supply`: the resources of the round, where an allocator decides. `outages`: peers to which no data
        goes in this round. `near`: whether a peer's assumption of an own copy is within the tolerance.
        """
        state = self._state
        if state.phase is not Phase.TRAIN or state.own is None:
            return
        held = state.exchange.held
        moved = [] if state.mode.shared_versions else [part for part in changed if part in held]
        held.update(dict.fromkeys([*moved, *state.exchange.parts(state.own.key)], state.round))
        state.enter(Phase.WAIT)
        self._trained_ns = now
        self._left, self._outages, self._near = budget_bytes, outages, near
        self._served, self._answered = set(), set()
        self._sent.start_round()
        receivers = self._receivers()
        wanting = {peer for peer in receivers if state.exchange.peer(peer).wants}
        choose = None if supply is None else partial(self._choose, supply)
        self._publish(wanting | receivers & {*self._correction.neighbours()}, choose)

    def try_publish(self) -> None:
        """After every event: publish to devices that have become neighbours since this round's data went."""
        if self._state.phase is Phase.WAIT:
            self._publish_late({*self._correction.neighbours()} - self._served)

    def on_request(self, now: int, source: str, request: Request) -> None:
        """Answer a member with this round's data. If they have gone, answer at once, but once a round."""
        state = self._state
        if source not in state.members.alive():
            state.act(Drop("stranger"))
            return
        state.exchange.on_request(source, (Part(BlockKey(b, i), g) for b, i, g, _ in request.items))
        if state.phase is Phase.WAIT and source not in self._outages | self._answered:
            self._publish_late({source})

    def _receivers(self) -> set[str]:
        return {peer for peer in self._state.greeted() if not self._state.peers[peer].done}

    def _publish_late(self, missed: set[str]) -> None:
        """Publish within the rest of the budget. An allocator leaves no rest: then only manifests go."""
        if to := missed and missed & self._receivers():
            self._publish(to, None if self._state.exchange.allocation is None else lambda wanted, asked: {})

    def _publish(self, to: set[str], choose: Choose | None) -> None:
        """Send this round's data and its manifest, which replaces an earlier manifest of the round."""
        state, exchange = self._state, self._state.exchange
        assert state.own is not None
        signed = state.mode.shared_versions  # a relayed payload cannot change its codec
        lag = self._relays().least_lag if signed else _any_lag
        plans = exchange.plan(
            *(state.own.key, to, self._left, state.work, self._goes, choose, self._outages, lag, self._near)
        )
        if self._correction.owes() and choose is None and not signed:
            plans = self._coarser(plans)
        digest = state.members.digest()
        for peer, plan in plans.items():
            manifest = Manifest(state.round, state.work, digest, list(plan.items))
            state.act(Publish(peer, state.round, plan.parts, manifest, plan.codecs))
            self._left -= self._sent.add(peer, plan)
        self._served |= to & {*self._correction.neighbours()}
        self._answered |= to

    def _relays(self) -> Relays:
        groups, correction = self._state.exchange.groups, self._correction
        graphs = {group: correction.graph(group) for group in groups}
        return Relays(graphs, {group: correction.period(group) for group in groups}, self._state.me.device)

    def _coarser(self, plans: Mapping[str, Plan]) -> dict[str, Plan]:
        """Send some parts in a coarser codec, to offset the bytes of reports.

        Not the parts that replace the receiver's copy.
        """
        sent = [(part, cause) for plan in plans.values() for part, _, cause in plan.parts]
        whole = {
            part for part, cause in sent if cause == "transfer" or self._state.exchange.is_refitted(part)
        }
        coarse = {part for plan in plans.values() for part in plan.codecs}  # these are coarser already
        codecs = self._correction.coarser(Counter(part for part, _ in sent if part not in whole | coarse))
        return {
            peer: replace(
                plan,
                codecs={**{part: codecs[part] for part, _, _ in plan.parts if part in codecs}, **plan.codecs},
            )
            for peer, plan in plans.items()
        }

    def _choose(
        self, supply: Supply, wanted: Sequence[Transfer], asked: Collection[Transfer]
    ) -> Mapping[Transfer, str]:
        allocation = self._state.exchange.allocation
        assert allocation is not None
        survival = {} if allocation.price is None else self._survival.observe()
        weights = self._correction.weights()
        return allocation.choose(wanted, asked, self._state.round, supply, weights, survival)

    def _goes(self, peer: str, group: str) -> bool:
        """Whether a group is exchanged with a peer in this round."""
        around = self._correction.graph(group)[self._state.me.device]
        return peer in around and self._correction.exchanged(group)

    def on_manifest(self, now: int, source: str, manifest: Manifest) -> bool:
        """Keep a neighbour's manifest until its round closes. False: it is malformed."""
        state = self._state
        most_items = 2 * state.config.adapter.max_devices * len(state.exchange.groups)
        if manifest.round >= state.config.round.count or len(manifest.items) > most_items:
            state.act(Drop("malformed"))
            return False
        kept = state.peers[source].manifests
        kept[manifest.round] = manifest
        if len(kept) > MANIFESTS:  # the one of this round is needed, and the newest tells how far the peer is
            del kept[min(kept.keys() - {state.round})]
        state.saw_round(manifest.round, source)
        state.exchange.on_manifest(source, manifest)
        self._connections.reconcile(now, source, manifest.digest)
        return True

    # -- the end of a round ------------------------------------------------------------------------
    def on_deadline(self, now: int) -> None:
        """Close the round without the missing manifests, but not before the own local steps are done."""
        if self._state.phase is Phase.WAIT:
            self._close(now)
        elif self._state.phase is Phase.TRAIN:
            self._state.timers["deadline"] = now + LATE_NS

    def try_close(self, now: int) -> None:
        """After every event: close the round once every neighbour's manifest of it has arrived.

        No round waits for a neighbour that is done or that has sent a manifest of a later round: its manifest
        of this round was lost or never sent.
        """
        state = self._state
        if state.phase is Phase.WAIT and all(map(self._has_reported, self._correction.neighbours())):
            self._close(now)

    def _has_reported(self, name: str) -> bool:
        peer = self._state.peers.get(name)
        return peer is not None and (peer.done or max(peer.manifests, default=-1) >= self._state.round)

    def _close(self, now: int) -> None:
        state = self._state
        assert state.own is not None
        members = state.training()
        heard = {n: p.manifests[state.round] for n, p in state.peers.items() if state.round in p.manifests}
        by_group = {group: self._weights(group, heard) for group in state.exchange.groups}
        weights = next(iter(by_group.values()))
        mixes = state.exchange.close_round(state.own.key, state.round, by_group, heard, self._layers())
        state.act(Apply(mixes, closes=True))
        self._request_lost(heard)
        state.closed = state.round
        state.act(self._record(now, members, weights))
        self._snapshot()
        self._correction.round_closed(now)
        following = self._following(now)
        if following < state.config.round.count:
            self._start_round(now, following)
        else:
            self.finish(now)

    def _record(self, now: int, members: tuple[str, ...], weights: dict[str, float]) -> RoundDone:
        state, sent, times = self._state, self._sent, (self._start_ns, self._trained_ns, now)
        counts = (sent.matrices, sent.block_bytes, state.exchange.price)
        withheld = sum(sent.withheld.values())
        return RoundDone(state.round, state.work, *times, weights, withheld, members, *counts)

    def _weights(self, group: str, heard: Container[str]) -> dict[str, float]:
        """gamma_g w_ij of the neighbours whose manifests have arrived."""
        row = metropolis_row(self._correction.graph(group), self._state.me.device)
        return {n: self._correction.gamma(group) * w for n, w in row.items() if n in heard}

    def _layers(self) -> dict[str, Layer]:
        """How the devices mix in this round; empty if kept copies do not follow their owners."""
        state, correction = self._state, self._correction
        if not applies(state.config):
            return {}
        return {
            g: Layer(correction.graph(g), correction.gamma(g), correction.exchanged(g))
            for g in state.exchange.groups
        }

    def _request_lost(self, heard: Iterable[str]) -> None:
        """Request copies that a neighbour does not send again because it takes them for known here."""
        for peer in sorted(heard):
            lost = self._state.exchange.take_lost(peer)[:MAX_WISHES]
            if lost:
                items = [(*part.block, part.group, ZERO) for part in lost]
                self._state.tell(peer, Request(items, self._state.round))

    def _following(self, now: int) -> int:
        """The next round, or a later one that the neighbours have published. Drops old manifests.

        A neighbour only speaks for itself. So a device goes at once to a round that more than half of its
        two or more neighbours have published. Fewer neighbours make it skip MINORITY_STEP rounds, and only if
        its own rounds are late: an honest neighbour waits for it until the deadline, and gains no more than
        one round a deadline.
        """
        state, following = self._state, self._state.round + 1
        linked = [state.peers.get(name) for name in self._later_neighbours()]
        reached = [-1 if peer is None else max(peer.manifests, default=-1) for peer in linked]
        deadline_ns = max(1, int(state.config.round.deadline_s * SECOND))
        self._late_ns += now - self._start_ns
        if reached:
            agreed = majority(reached) if len(reached) > 1 else -1
            in_time = state.round + self._late_ns // deadline_ns
            skipping = min(max(reached), in_time, following + MINORITY_STEP)
            following = max(following, agreed, skipping)
        late_ns = self._late_ns - deadline_ns * (following - state.round)
        self._late_ns = min(max(0, late_ns), deadline_ns)
        for peer in state.peers.values():
            peer.manifests = {r: m for r, m in peer.manifests.items() if r >= following}
        return following

    def _later_neighbours(self) -> set[str]:
        """The neighbours of this round, and those among all that train: some may begin in a later round."""
        state, me = self._state, self._state.me.device
        training = {name for name, record in state.members.alive().items() if record.since_round >= 0}
        return {*self._correction.neighbours(), *state.graph(sorted(training | {me}))[me]}

    def _snapshot(self) -> None:
        state = self._state
        every = state.me.snapshot_every
        if every and (state.round + 1) % every == 0:
            state.act(Snapshot(state.round, "round"))
        if every and state.round in state.corrected_at:
            state.act(Snapshot(state.round, "corrected"))

    # -- the end of the run ------------------------------------------------------------------------
    def finish(self, now: int) -> None:
        """After the last round, or when the run ends early: save the adapter and say goodbye.

        The adapter is that of the last closed round. Local steps of an open round are dropped.
        """
        state = self._state
        state.enter(Phase.FINISH)
        state.timers.pop("deadline", None)
        state.export()
        if state.own is not None and not state.withdrawn():
            state.announce(state.members.amend(state.own, status=Status.FINISHED))
        self.say_farewell("finished", last=False)
        state.timers["grace"] = now + int(FINISH_GRACE_S * SECOND)

    def say_farewell(self, reason: str, last: bool) -> None:
        """Send every greeted peer a Bye. `last`: no message follows it."""
        self._state.act(*(Farewell(name, reason, last) for name in self._state.greeted()))

    def on_grace(self, now: int) -> None:
        """Exit without the last messages of peers that have not sent them in time."""
        self.end("finished; not all others said goodbye")

    def end(self, reason: str) -> None:
        """Say goodbye and exit, without the last messages of all peers."""
        self.say_farewell("finished", last=True)
        self._exit(reason)

    def try_exit(self) -> None:
        """After every event: exit once every live peer has sent its last message.

        While a link carries data, both ends may have to give credit or relay news. Once both ends are done,
        each sends its last message. So nothing is sent to a device that has gone, and both ends count the
        same bytes. A device that waits for a peer sends no last message, since it may have to relay news.
        """
        state = self._state
        if state.phase is not Phase.FINISH:
            return
        alive = state.members.alive()
        peers = {name: peer for name, peer in state.peers.items() if name in alive}
        if not all(peer.done for peer in peers.values()):
            return
        for name in state.greeted():
            if state.peers[name].finished:
                state.act(Farewell(name, "finished", last=True))
                state.peers[name].dismissed = True
        if all(peer.silent for peer in peers.values()):
            self._exit("finished")

    def _exit(self, reason: str) -> None:
        self._state.enter(Phase.GONE)
        self._state.act(Exit(0, reason))
