"""Correction by priority: measure, report, decide, act (method 6 and 7).

A schedule sets the actions by the round alone. Other policies measure: every `correction.period` rounds of a
correction, each device measures the gradients of its loss and reports them to all others through its
neighbours. `correction.delay` rounds later, every device computes the same residuals from the mean of the
reports, and the policy decides the action of each layer group. A decision holds until the next one or until
the correction ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import networkx as nx

from coordinator_free.averaging.rate_allocation import Weights
from coordinator_free.averaging.topology import Graph
from coordinator_free.correction import lookahead, residuals
from coordinator_free.correction.graph_ladder import Bounds, Ladder, edge, ladder
from coordinator_free.correction.network_mean import Mean, NetworkMean, Report
from coordinator_free.correction.policies import SCHEDULES, before_decision, decide
from coordinator_free.correction.policy_interface import (
    Decision,
    GroupAction,
    GroupView,
    Limits,
    Memory,
    View,
)
from coordinator_free.identifiers import BlockKey, Part
from coordinator_free.membership.signed_records import Verify
from peers.config import DeviceConfig
from peers.protocol.actions import Diagnose, Drop
from peers.protocol.connections import Connections
from peers.protocol.masked_reports import MaskedReports
from peers.protocol.overhead_offset import OverheadOffset
from peers.protocol.state import DeviceState
from transport.wire.limits import CURVE_BYTES, HEADER_BYTES, SIGNATURE_BYTES
from transport.wire.messages import Observed

REPORT_BYTES = HEADER_BYTES + SIGNATURE_BYTES + CURVE_BYTES  # of a report without its values, at most
Priorities = Mapping[str, residuals.Priority]
# Inputs of the residuals, logged beside them.
ESTIMATES = ("mu", "rate", "eta", "gap", "curvature", "disagreement")


class Correction:
    """The actions of the groups in this round. `sign`, `verify`: of reports, which others relay."""

    def __init__(
        self, state: DeviceState, connections: Connections, sign: Callable[[bytes], bytes], verify: Verify
    ) -> None:
        self._state, self._connections, self._config = state, connections, state.config.correction
        groups = state.exchange.groups
        self._limits = limits(state.config)
        self._schedule = SCHEDULES.get(self._config.policy)
        self._isolated = state.config.isolation.leak == 0
        self._observables = len(groups) * residuals.group_numbers(self._config.sketch)
        self._measures_trials = self._config.policy == lookahead.NAME
        trials = lookahead.trial_count(groups) if self._measures_trials else 0
        self._network_mean = NetworkMean(
            *(self._observables + trials, state.config.adapter.max_devices, self._genuine),
            masked=self._config.masked,
        )
        self._masks = MaskedReports(state, self._network_mean, trials) if self._config.masked else None
        self._sign, self._verify = sign, verify
        self._overhead_offset = OverheadOffset(state.config.radio.codec, state.exchange.part_bytes)
        self._memory, self._decision = Memory(), Decision({}, "", Memory())
        self._members: tuple[str, ...] = ()  # the members of the last decision
        self._events_seen = 0  # corrections that this object has noticed
        self._measured: Weights | None = None  # of the last diagnosis; None: there was none since the event
        self._anchor = False  # a correction has begun and the learner has not been told
        self._epochs: list[int] = []  # rounds whose diagnosis waits for its decision
        # Cache of `_graphs`: members, decision, graph by group.
        self._graphs_cache: tuple[tuple[str, ...], Decision | None, dict[str, Graph[str]]] = ((), None, {})
        self._neighbours: list[str] = []  # in the cached graphs

    # -- the actions of this round ---------------------------------------------------------------------
    def settings(self) -> dict[str, GroupAction]:
        """The actions by group; empty outside corrections: then the base holds."""
        if self._state.work != "correction":
            return {}
        if self._schedule is None:
            self._notice_event()
            return dict(self._decision.settings)
        rounds = self._config.rounds
        began = self._state.correct_until - rounds  # the round of the event
        k = max(0, self._state.round - began - 1)
        return dict.fromkeys(self._state.exchange.groups, self._schedule(k, rounds, self._limits))

    def takes_anchor(self) -> bool:
        """Whether a correction has begun since the last call."""
        self._notice_event()
        anchor, self._anchor = self._anchor, False
        return anchor

    def graph(self, group: str) -> Graph[str]:
        """The learning graph of a group in this round."""
        return self._graphs()[group]

    def _graphs(self) -> dict[str, Graph[str]]:
        """The graphs of this round, by group.

        The decision's refined graphs hold while the members that train are those of the decision. Otherwise
        it is the scenario's graph.
        """
        members = self._state.training()
        refined = self._state.work == "correction" and self._members == members
        decided = self._decision if refined else None
        if self._graphs_cache[0] != members or self._graphs_cache[1] is not decided:
            graph = self._state.graph(members)
            groups = self._state.exchange.groups
            built = {g: self._refined(graph, g) if refined else graph for g in groups}
            self._graphs_cache = members, decided, built
            me = self._state.me.device
            self._neighbours = sorted({peer for graph in built.values() for peer in graph[me]})
        return self._graphs_cache[2]

    def _refined(self, graph: Graph[str], group: str) -> Graph[str]:
        refined: Graph[str] = nx.Graph(graph)
        refined.remove_edges_from(self._decision.dropped_edges.get(group, ()))
        refined.add_edges_from(self._decision.added_edges.get(group, ()))
        return refined

    def neighbours(self) -> list[str]:
        """The neighbours over all groups, in order of id."""
        self._graphs()
        return self._neighbours

    def exchanged(self, group: str) -> bool:
        """Whether the group is exchanged in this round, by its period H_g."""
        return self._state.round % self.period(group) == 0

    def period(self, group: str) -> int:
        """H_g in this round; 1 outside a correction."""
        action = self.settings().get(group)
        return 1 if action is None else action.period

    def gamma(self, group: str) -> float:
        """The mixing strength of a group in this round."""
        action = self.settings().get(group)
        return self._state.config.mixing.gamma if action is None else action.gamma

    def weights(self) -> Weights:
        """The weights of the groups for an allocator: p_g, E_g and lambda_max(F_g) of the last diagnosis.
        Without a diagnosis all groups weigh the same."""
        if self._state.work == "correction" and self._measured is not None:
            return self._measured
        alike = dict.fromkeys(self._state.exchange.groups, 1.0)
        return Weights(alike, alike, alike)

    def owes(self) -> bool:
        """Whether data has to offset the bytes of reports. False until the priorities are known."""
        return self._measured is not None and self._overhead_offset.owes

    def coarser(self, copies: Mapping[Part, int]) -> dict[Part, str]:
        """The codecs of the parts that offset the bytes of reports. `copies`: receivers of each part."""
        return {} if self._measured is None else self._overhead_offset.codecs(copies, self._measured.residual)

    # -- measurements and reports ----------------------------------------------------------------------
    def round_closed(self, now: int) -> None:
        """Decide from the diagnosis that is `correction.delay` rounds old; start the next diagnosis."""
        state, config = self._state, self._config
        self._notice_event()
        # With masks one refused report costs the whole sum, so living members are never barred.
        living = {record.key for record in state.members.alive().values()} if self._masks is not None else ()
        self._network_mean.keep_only(state.blocks, living)
        if self._schedule is not None or state.work != "correction":
            return
        if self._epochs and state.round >= self._epochs[0] + config.delay:
            self._decide(self._epochs.pop(0))
            self._connect_neighbours(now)
        if state.round % config.period == 0 and state.round + config.delay < state.correct_until:
            self._start_diagnosis()

    def _start_diagnosis(self) -> None:
        state = self._state
        if self._masks is not None and not self._masks.begin():
            return
        self._epochs.append(state.round)
        movers = len(state.training()) if self._isolated else 1
        state.act(Diagnose(state.round, self._trials(), movers))

    def _trials(self) -> dict[lookahead.Key, dict[str, GroupAction]]:
        if not self._measures_trials:
            return {}
        base = dict.fromkeys(self._state.exchange.groups, self._limits.base)
        return lookahead.trial_settings({**base, **self.settings()}, self._limits)

    def diagnosed(self, epoch: int, values: Iterable[float]) -> None:
        """Report the measurements of this device after round `epoch`."""
        if self._state.own is None:
            return
        if self._masks is None:
            self._network_mean.add_own(self._state.own.key, epoch, values, self._sign)
        else:
            self._masks.add_own(epoch, values, self._sign)
        self._spread_reports()

    def on_observed(self, now: int, source: str, message: Observed) -> None:
        """Keep and relay the report of another device."""
        key = BlockKey(message.device, message.incarnation)
        report = self._network_mean.unpack(key, message.epoch, message.values, message.signature)
        if report is None or message.epoch > self._latest_epoch():
            self._state.act(Drop("malformed"))
            return
        if key not in self._state.blocks:
            self._state.act(Drop("unknown"))
            return
        refused = self._network_mean.refused
        if self._network_mean.on_report(source, report):
            if self._masks is not None:
                self._masks.keep_sum(report.epoch)
            self._spread_reports()
        elif self._network_mean.refused > refused:
            self._state.act(Drop("forged"))

    def _latest_epoch(self) -> int:
        """The latest round whose report may come.

        A report replaces all earlier ones of its origin. With masks, one of a far round would keep all others
        from reading the sums of many diagnoses. A device that is a period behind loses a diagnosis anyway.
        """
        last = self._state.config.round.count - 1
        return last if self._masks is None else min(last, self._state.network_round + self._config.period)

    def _connect_neighbours(self, now: int) -> None:
        """Open links to the neighbours that a denser graph adds."""
        alive = self._state.members.alive()
        for peer in self.neighbours():
            if peer not in self._state.peers and peer in alive:
                self._connections.connect(peer, alive[peer].address, now)

    def _spread_reports(self) -> None:
        """Send each greeted peer the reports that it does not have yet."""
        for peer in self._state.greeted():
            for r in self._network_mean.unsent_reports(peer):
                packed = r.packed()
                if self._config.offset_overhead:
                    self._overhead_offset.add_overhead(len(packed) + REPORT_BYTES)
                self._state.tell(
                    peer, Observed(r.origin.device, r.origin.incarnation, r.epoch, packed, r.signature)
                )

    def _genuine(self, report: Report) -> bool:
        record = self._state.members.get(report.origin)
        return record is not None and self._verify(record.public, report.signed_data(), report.signature)

    def _notice_event(self) -> None:
        """After a new event, discard the decision and its predictions; keep what the policy has learnt."""
        if self._state.events != self._events_seen:
            self._events_seen = self._state.events
            first = before_decision(self._config.policy, self._state.exchange.groups, self._limits)
            self._memory, self._anchor, self._epochs = self._memory.after_event(first), True, []
            self._decision, self._members = Decision(first, "", self._memory), ()
            self._measured = None
            if self._masks is not None:
                self._masks.forget_cohorts()

    # -- decisions -------------------------------------------------------------------------------------
    def _decide(self, epoch: int) -> None:
        state = self._state
        keys = [record.key for device, record in state.members.alive().items() if device in state.training()]
        masks, found = self._masks, self._network_mean
        missing = found.missing(keys, epoch) if masks is None else masks.missing(epoch)
        try:
            if masks is None:
                mean = found.mean(key for key in keys if key not in missing)
            else:
                mean = masks.mean(epoch)
            if mean is None:
                state.log("undecided", epoch=epoch, missing=sorted(map(str, missing)))
                return
            view, logged = self._view(mean, epoch)
            decision = decide(self._config.policy, view, self._limits, self._memory)
        except (ArithmeticError, ValueError) as error:  # reports that a peer has made up
            state.log("undecided", epoch=epoch, missing=sorted(map(str, missing)), error=str(error)[:200])
            return
        self._decision = decision
        self._memory, self._members = self._decision.memory, state.training()
        record = {**self._decision.record(), "residuals": logged, "digest": mean.digest.hex()}
        state.log("decision", epoch=epoch, missing=sorted(map(str, missing)), **record)

    def _view(self, mean: Mean, epoch: int) -> tuple[View, dict[str, Any]]:
        """The input of the policy, and the values to log, from the mean of the reports of round `epoch`."""
        state, config, groups = self._state, self._state.config, self._state.exchange.groups
        means = residuals.unpack(mean.values[: self._observables], groups, len(mean.origins))
        ranked = residuals.all_priorities(means, state.sizes)
        self._measured = _weights(means, ranked["raw"])
        rungs = self._ladder(state.training())
        copies = 2 * len(rungs.at(0).edges) * len(state.blocks)
        views, logged = {}, {}
        for group in groups:
            views[group], logged[group] = self._group_view(group, means[group], ranked, copies)
        tried = mean.values[self._observables :]
        view = View(
            epoch // self._config.period,
            self._config.period,
            views,
            rungs,
            config.seed,
            lookahead.unpack(tried, groups) if self._measures_trials else {},
            isolated=self._isolated,
            averages=not state.mode.shared_versions,
        )
        return view, logged

    def _group_view(
        self, group: str, mean: residuals.Means, ranked: Mapping[str, Priorities], copies: int
    ) -> tuple[GroupView, dict[str, float]]:
        """The view of one group, and its values to log. `copies`: matrices sent by all devices in a round."""
        held = self.settings().get(group, self._limits.base)
        found = residuals.residuals(mean, held.steps, self._config.c)
        raw = ranked["raw"][group]
        size = float(copies * self._state.exchange.part_bytes(group))
        shares = {"p" if name == "raw" else f"p_{name}": of[group].share for name, of in ranked.items()}
        estimates = {name: getattr(mean, name) for name in ESTIMATES}
        logged = {**found._asdict(), "S": raw.score, **shares, **estimates}
        return GroupView(found, raw.share, mean.rate, mean.eta, size), logged

    def _ladder(self, members: tuple[str, ...]) -> Ladder:
        links = {edge(a, b): 1.0 for a in members for b in members if a < b}
        return ladder(members, self._state.graph(members), links, self._state.config.seed, Bounds())


def _weights(means: Mapping[str, residuals.Means], priorities: Priorities) -> Weights:
    return Weights(
        {group: priority.share for group, priority in priorities.items()},
        {group: mean.energy for group, mean in means.items()},
        {group: mean.curvature for group, mean in means.items()},
    )


def limits(config: DeviceConfig) -> Limits:
    """The bounds of a policy's actions in a scenario."""
    steps, gamma, correction = config.round.local_steps, config.mixing.gamma, config.correction
    return Limits(
        base=GroupAction(steps, gamma=gamma),
        steps_min=min(steps, correction.steps_min or max(1, steps // 2)),
        steps_max=max(steps, correction.steps_max or 2 * steps),
        prox_min=correction.prox_max / 10,
        prox_max=correction.prox_max,
        gamma_min=min(correction.gamma_min, gamma),
        period_max=correction.period_max,
    )
