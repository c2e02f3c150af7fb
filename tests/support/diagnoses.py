"""Inputs of correction policies for tests: six devices on a ring, three groups."""

from __future__ import annotations

import itertools

import networkx as nx

from coordinator_free.correction.graph_ladder import Bounds, Ladder, edge, ladder
from coordinator_free.correction.policy_interface import GroupAction, GroupView, Limits, View
from coordinator_free.correction.residuals import Residuals

GROUPS = ("early", "mid", "late")
SHARES = (0.1, 0.3, 0.6)
MEMBERS = [f"d{i}" for i in range(6)]
LIMITS = Limits(GroupAction(4), steps_max=13, prox_min=1e-3, prox_max=10.0)


def ring_ladder() -> Ladder:
    """The ladder of graphs from a ring, with all links feasible at cost 1."""
    links = {edge(a, b): 1.0 for a, b in itertools.combinations(MEMBERS, 2)}
    return ladder(MEMBERS, nx.cycle_graph(MEMBERS), links, 0, Bounds())


LADDER = ring_ladder()


def group(local=0.01, consensus=0.01, heterogeneity=0.01, priority=1 / 3, mu=0.05, eta=0.1, bytes=1000.0):
    return GroupView(Residuals(local, consensus, heterogeneity), priority, mu * eta, eta, bytes)


def view(index=0, rounds=5, seed=0, trials=None, **groups: GroupView) -> View:
    shown = {name: group(priority=share) for name, share in zip(GROUPS, SHARES, strict=True)}
    return View(index, rounds, {**shown, **groups}, LADDER, seed, trials or {})
