"""Correction by priority: measure, tell everyone, decide alike, act (method 6 and 7).

A schedule says what to do by the round alone. For other policies, every `correction.period` rounds of a
correction each device measures its loss's gradients, and tells all
others through its neighbours; `correction.delay` rounds later everyone computes the same residuals from the
mean of what it has heard, and the policy's decision for each layer group. It holds until the next one or the
end of the correction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np

from coordinator_free.averaging.rate_allocation import Weights
from coordinator_free.averaging.topology import Graph
from coordinator_free.correction import lookahead, residuals
from coordinator_free.correction.graph_ladder import Bounds, Ladder, edge, ladder
from coordinator_free.correction.network_mean import Mean, NetworkMean, Report
from coordinator_free.correction.policies import SCHEDULES, decide
from coordinator_free.correction.policy_interface import (
    Decision,
    GroupAction,
    GroupView,
    Limits,
    Memory,
    View,
)
from coordinator_free.identifiers import BlockKey, Part
from coordinator_free.membership.records import Verify
from peers.config import DeviceConfig
from peers.protocol.actions import Diagnose, Drop
from peers.protocol.connections import Connections
from peers.protocol.overhead_offset import OverheadOffset
from peers.protocol.state import DeviceState
from transport.wire.limits import CURVE_BYTES, HEADER_BYTES, SIGNATURE_BYTES
from transport.wire.messages import Observed

REPORT_BYTES = HEADER_BYTES + SIGNATURE_BYTES + CURVE_BYTES  # of a report beside its values, at most
ESTIMATES = ("mu", "eta", "curvature", "disagreement")  # what residuals are made of, told beside them


class Correction:
    """What the groups do in this round. `sign`, `verify`: of reports, which others relay."""

    def __init__(
        self, state: DeviceState, connections: Connections, sign: Callable[[bytes], bytes], verify: Verify
    ) -> None:
        self._state, self._connections, self._config = state, connections, state.config.correction
        groups = state.exchange.groups
        self._limits = limits(state.config)
        self._schedule = SCHEDULES.get(self._config.policy)
        self._isolated = state.config.isolation.leak == 0
        self._observables = len(groups) * (len(residuals.HEADER) + self._config.sketch)
        self._tries = self._config.policy == lookahead.NAME
        length = self._observables + (lookahead.trial_count(groups) if self._tries else 0)
        self._network_mean = NetworkMean(length, state.config.adapter.max_devices, self._genuine)
        self._sign, self._verify = sign, verify
        self._overhead_offset = OverheadOffset(state.config.radio.codec, state.exchange.part_bytes)
        self._memory, self._decision = Memory(), Decision({}, "", Memory())
        self._members: tuple[str, ...] = ()  # for whom it was decided
        self._noticed = 0  # events
        self._measured: Weights | None = None
        self._anchor = False
        self._asked: list[int] = []  # epochs that are to be decided from
        self._drawn: tuple[tuple[str, ...], Decision | None, dict[str, Graph[str]]] = ((), None, {})
        self._around: list[str] = []  # the neighbours in what was drawn

    # -- what holds in this round ----------------------------------------------------------------------
    def settings(self) -> dict[str, GroupAction]:
        """By group; nothing: the base."""
        if self._state.work != "correction":
            return {}
        if self._schedule is None:
            return dict(self._decision.settings)
        rounds = self._config.rounds
        began = self._state.correct_until - rounds  # an event's round; a joiner corrects in it too
        k = max(0, self._state.round - began - 1)
        return dict.fromkeys(self._state.exchange.groups, self._schedule(k, rounds, self._limits))

    def takes_anchor(self) -> bool:
        """Whether a correction has begun since this was asked last."""
        self._notice()
        anchor, self._anchor = self._anchor, False
        return anchor

    def graph(self, group: str) -> Graph[str]:
        return self._graphs()[group]

    def _graphs(self) -> dict[str, Graph[str]]:
        """Of this round, by group; the scenario's, unless it was refined for just these members."""
        members = self._state.training()
        refined = self._state.work == "correction" and self._members == members
        decided = self._decision if refined else None
        if self._drawn[0] != members or self._drawn[1] is not decided:
            graph = self._state.graph(members)
            groups = self._state.exchange.groups
            drawn = {g: self._refined(graph, g) if refined else graph for g in groups}
            self._drawn = members, decided, drawn
            me = self._state.me.device
            self._around = sorted({peer for graph in drawn.values() for peer in graph[me]})
        return self._drawn[2]

    def _refined(self, graph: Graph[str], group: str) -> Graph[str]:
        refined: Graph[str] = nx.Graph(graph)
        refined.remove_edges_from(self._decision.dropped_edges.get(group, ()))
        refined.add_edges_from(self._decision.added_edges.get(group, ()))
        return refined

    def neighbours(self) -> list[str]:
        """Over all groups, in order of id."""
        self._graphs()
        return self._around

    def exchanged(self, group: str) -> bool:
        """Whether it is a round of the group's period H_g."""
        action = self.settings().get(group)
        return action is None or self._state.round % action.period == 0

    def gamma(self, group: str) -> float:
        action = self.settings().get(group)
        return self._state.config.mixing.gamma if action is None else action.gamma

    def weights(self) -> Weights:
        """What a group's copies count when an allocator chooses: p_g, E_g and lambda_max(F_g) of the last
        diagnosis; without one, all groups alike."""
        if self._state.work == "correction" and self._measured is not None:
            return self._measured
        alike = dict.fromkeys(self._state.exchange.groups, 1.0)
        return Weights(alike, alike, alike)

    def owes(self) -> bool:
        """Whether data has to make up for what was told; not before it is known which groups matter least."""
        return self._measured is not None and self._overhead_offset.owes

    def coarser(self, copies: Mapping[Part, int]) -> dict[Part, str]:
        """Of the parts that go out, so often each, those that make up for what was told."""
        return {} if self._measured is None else self._overhead_offset.codecs(copies, self._measured.residual)

    # -- measuring and telling -------------------------------------------------------------------------
    def round_closed(self, now: int) -> None:
        """Decide from the diagnosis that is old enough; begin the next one."""
        state, config = self._state, self._config
        self._notice()
        self._network_mean.keep_only(state.blocks)
        if self._schedule is not None or state.work != "correction":
            return
        if self._asked and state.round >= self._asked[0] + config.delay:
            self._decide(self._asked.pop(0))
            self._meet(now)
        if state.round % config.period == 0 and state.round + config.delay < state.correct_until:
            self._asked.append(state.round)
            movers = len(state.training()) if self._isolated else 1
            state.act(Diagnose(state.round, self._trials(), movers))

    def _trials(self) -> dict[lookahead.Key, dict[str, GroupAction]]:
        if not self._tries:
            return {}
        base = dict.fromkeys(self._state.exchange.groups, self._limits.base)
        return lookahead.trial_settings({**base, **self.settings()}, self._limits)

    def diagnosed(self, epoch: int, values: Iterable[float]) -> None:
        """What this device has measured after round `epoch`."""
        if self._state.own is None:
            return
        self._network_mean.add_own(self._state.own.key, epoch, values, self._sign)
        self._spread()

    def heard(self, source: str, message: Observed) -> None:
        """Another's measurement."""
        key = BlockKey(message.device, message.incarnation)
        if len(message.values) != 4 * self._network_mean.length:
            self._state.act(Drop("malformed"))
            return
        values = np.frombuffer(message.values, dtype="<f4").astype(np.float32)
        refused = self._network_mean.refused
        if self._network_mean.on_report(source, Report(key, message.epoch, values, message.signature)):
            self._spread()
        elif self._network_mean.refused > refused:
            self._state.act(Drop("forged"))

    def _meet(self, now: int) -> None:
        """Have a link to everyone whom a denser graph makes a neighbour."""
        alive = self._state.members.alive()
        for peer in self.neighbours():
            if peer not in self._state.peers and peer in alive:
                self._connections.connect(peer, alive[peer].address, now)

    def _spread(self) -> None:
        for peer in self._state.greeted():
            for r in self._network_mean.unsent_reports(peer):
                packed = r.values.astype("<f4").tobytes()
                if self._config.offset_overhead:
                    self._overhead_offset.spent(len(packed) + REPORT_BYTES)
                self._state.tell(
                    peer, Observed(r.origin.device, r.origin.incarnation, r.epoch, packed, r.signature)
                )

    def _genuine(self, report: Report) -> bool:
        record = self._state.members.get(report.origin)
        return record is not None and self._verify(record.public, report.signed_data(), report.signature)

    def _notice(self) -> None:
        """Another event: what was predicted no longer holds, what was learnt does."""
        if self._state.events != self._noticed:
            self._noticed = self._state.events
            self._memory, self._anchor, self._asked = self._memory.after_event(), True, []
            self._decision, self._members = Decision({}, "", self._memory), ()
            self._measured = None

    # -- deciding --------------------------------------------------------------------------------------
    def _decide(self, epoch: int) -> None:
        state = self._state
        keys = [record.key for device, record in state.members.alive().items() if device in state.training()]
        missing = self._network_mean.missing(keys, epoch)
        mean = self._network_mean.mean(key for key in keys if key not in missing)
        if mean is None:
            state.log("undecided", epoch=epoch, missing=sorted(map(str, missing)))
            return
        view, told = self._view(mean, epoch)
        self._decision = decide(self._config.policy, view, self._limits, self._memory)
        self._memory, self._members = self._decision.memory, state.training()
        record = {**self._decision.record(), "residuals": told, "digest": mean.digest.hex()}
        state.log("decision", epoch=epoch, missing=sorted(map(str, missing)), **record)

    def _view(self, mean: Mean, epoch: int) -> tuple[View, dict[str, Any]]:
        state, groups = self._state, self._state.exchange.groups
        means = residuals.unpack(mean.values[: self._observables], groups)
        tried = mean.values[self._observables :]
        ranked = residuals.all_priorities(means, state.sizes)
        shares = ranked["raw"]
        self._measured = Weights(
            {group: share.share for group, share in shares.items()},
            {group: mean.energy for group, mean in means.items()},
            {group: mean.curvature for group, mean in means.items()},
        )
        members = state.training()
        rungs = self._ladder(members)
        copies = 2 * len(rungs.at(0).edges) * len(state.blocks)
        views, told = {}, {}
        for group in groups:
            held = self.settings().get(group, self._limits.base)
            apart = means[group].disagreement / held.gamma  # it was weighted with gamma_g w_ij
            found = residuals.residuals(replace(means[group], disagreement=apart), held.steps, self._config.c)
            size = float(copies * state.exchange.part_bytes(group))
            views[group] = GroupView(found, shares[group].share, means[group].mu, means[group].eta, size)
            p = {"p" if name == "raw" else f"p_{name}": of[group].share for name, of in ranked.items()}
            estimates = {name: getattr(means[group], name) for name in ESTIMATES}
            told[group] = {**found._asdict(), "S": shares[group].score, **p, **estimates}
        index = epoch // self._config.period
        config = state.config
        view = View(
            index,
            self._config.period,
            views,
            rungs,
            config.seed,
            lookahead.unpack(tried, groups) if self._tries else {},
            isolated=self._isolated,
            averages=not state.mode.shared_versions,
        )
        return view, told

    def _ladder(self, members: tuple[str, ...]) -> Ladder:
        links = {edge(a, b): 1.0 for a in members for b in members if a < b}
        return ladder(members, self._state.graph(members), links, self._state.config.seed, Bounds())


def limits(config: DeviceConfig) -> Limits:
    """What a policy may do in a scenario."""
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
