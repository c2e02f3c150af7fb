"""Which edges of the learning graph to add and which to drop, the same on every device (method 7).

A pure function of (members, graph, cost of each feasible link, seed): devices that agree on these agree on
the result without a message. `ladder` orders the graphs that can be reached from the scenario's by density;
a policy then only says how many rungs up or down a layer group goes. A rung depends on the graph it starts
from and not on how one got there, so it means the same to a device that has just joined.

rho = ||W - J||_2 of the Metropolis-Hastings matrix with the +1 is rounded to 1e-9 before it is compared, for
LAPACK's last bits differ between machines; what is then equal is told apart by a seeded hash of the edge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from coordinator_free.averaging.topology import Graph

Edge = tuple[str, str]  # ids in ascending order
Adjacency = NDArray[np.bool_]  # M x M, symmetric, devices in order of id
DIGITS = 9  # of rho
SMOOTH = 8  # order of the Schatten norm that stands in for rho where no single edge lowers it


@dataclass(frozen=True, slots=True)
class Bounds:
    """Degrees; edges that a ladder adds to and drops from the scenario's graph at most; edges it swaps."""

    min_degree: int = 1
    max_degree: int = 1 << 30
    swaps: int = 2
    up: int = 6
    down: int = 6


@dataclass(frozen=True, slots=True)
class Rung:
    """One graph. rho: ||W - J||_2. cost: of all its edges, in the unit of the costs given. modes: the
    eigenvalues of W without that of the mean."""

    edges: frozenset[Edge]
    rho: float
    cost: float
    modes: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Ladder:
    """rungs[base + k] is k steps denser than rungs[base], the scenario's graph within feasible links."""

    rungs: tuple[Rung, ...]
    base: int

    @property
    def top(self) -> int:
        return len(self.rungs) - 1 - self.base

    def clipped(self, rung: int) -> int:
        """The nearest step that there is, relative to the base."""
        return min(max(rung, -self.base), self.top)

    def at(self, rung: int) -> Rung:
        return self.rungs[self.base + self.clipped(rung)]

    def added(self, rung: int) -> tuple[Edge, ...]:
        """Edges of a rung that the base lacks, sorted."""
        return tuple(sorted(self.at(rung).edges - self.at(0).edges))

    def dropped(self, rung: int) -> tuple[Edge, ...]:
        """Edges of the base that a rung lacks, sorted."""
        return tuple(sorted(self.at(0).edges - self.at(rung).edges))


def edge(a: str, b: str) -> Edge:
    return (a, b) if a < b else (b, a)


def rho(graph: Graph[str], gamma: float = 1.0) -> float:
    """||W - J||_2 for (1 - gamma) I + gamma W with Metropolis weights."""
    adjacency = nx.to_numpy_array(graph, nodelist=sorted(graph)) > 0
    return float(_spectrum(adjacency, gamma)[-1])


def ladder(
    members: Sequence[str], graph: Graph[str], costs: Mapping[Edge, float], seed: int, bounds: Bounds
) -> Ladder:
    """The graphs to choose from. `costs`: of every feasible link, > 0, keys as `edge` makes them.

    Upwards: swaps (add one, drop one) that lower rho at no more cost, then more edges, each the one that
    lowers rho most per cost. Downwards: the least useful edge goes each time. A single edge may raise rho (a
    chord in a ring of 6 does, three lower it): graphs on the way that are no better than a sparser one are no
    rungs. Every rung is within the degree bounds, on feasible links and connected, with what `start` says.
    """
    search = _Search(sorted(members), costs, seed, bounds)
    base = search.start(graph)
    swapped = search.path(base, search.rewired, bounds.swaps)
    up = swapped + search.path([base, *swapped][-1], search.denser, bounds.up)
    down = search.path(base, search.sparser, bounds.down)
    below = _worthwhile([search.rung(a) for a in reversed(down)])
    rung = search.rung(base)
    return Ladder((*below, rung, *_worthwhile([search.rung(a) for a in up], rung.rho)), len(below))


def _worthwhile(rungs: Iterable[Rung], beat: float = 1.0) -> list[Rung]:
    """Those that are better than all before them, which are sparser."""
    kept = []
    for rung in rungs:
        if rung.rho < beat:
            kept.append(rung)
            beat = rung.rho
    return kept


class _Score(NamedTuple):
    """rho, and a smooth stand-in for it."""

    rho: float
    smooth: float


class _Search:
    """Single steps between graphs. Each returns None where nothing is allowed."""

    def __init__(
        self, members: Sequence[str], costs: Mapping[Edge, float], seed: int, bounds: Bounds
    ) -> None:
        self._members, self._bounds = members, bounds
        pairs = [(i, j) for j in range(len(members)) for i in range(j)]
        self._edges = {(i, j): (members[i], members[j]) for i, j in pairs}
        self._feasible = {pair for pair, e in self._edges.items() if e in costs}
        dearest = max(costs.values(), default=1.0)
        self._cost = {pair: costs.get(e, dearest) for pair, e in self._edges.items()}
        self._tie_break = {pair: _hash(seed, e) for pair, e in self._edges.items()}

    def path(
        self, adjacency: Adjacency, step: Callable[[Adjacency], Adjacency | None], times: int
    ) -> list[Adjacency]:
        made: list[Adjacency] = []
        while len(made) < times:
            following = step([adjacency, *made][-1])
            if following is None:
                break
            made.append(following)
        return made

    def rung(self, adjacency: Adjacency) -> Rung:
        pairs = self._present(adjacency)
        cost = sum(self._cost[pair] for pair in pairs)
        edges = frozenset(self._edges[pair] for pair in pairs)
        modes = tuple(map(float, np.linalg.eigvalsh(_weights(adjacency))[:-1].round(DIGITS)))
        return Rung(edges, max(map(abs, modes), default=0.0), cost, modes)

    def start(self, graph: Graph[str]) -> Adjacency:
        """The scenario's graph on feasible links.

        Should it fall apart, the cheapest feasible links join it, and infeasible ones of its own stay if
        those do not suffice.
        """
        wanted = [pair for pair, e in self._edges.items() if graph.has_edge(*e)]
        kept: Graph[int] = nx.Graph()
        kept.add_nodes_from(range(len(self._members)))
        kept.add_edges_from(pair for pair in wanted if pair in self._feasible)
        spare = sorted(self._feasible, key=lambda pair: (self._cost[pair], self._tie_break[pair]))
        for i, j in [*spare, *wanted]:
            if not nx.has_path(kept, i, j):
                kept.add_edge(i, j)
        adjacency: Adjacency = nx.to_numpy_array(kept, nodelist=range(len(self._members))) > 0
        return adjacency

    def denser(self, adjacency: Adjacency) -> Adjacency | None:
        """With the edge that lowers rho most per cost; where none does, that lowers its stand-in most."""
        degree = adjacency.sum(axis=1)
        full = {i for i in range(len(degree)) if degree[i] >= self._bounds.max_degree}
        options = [p for p in sorted(self._feasible) if not adjacency[p] and not full.intersection(p)]
        return self._best(adjacency, options, _per_cost)

    def sparser(self, adjacency: Adjacency) -> Adjacency | None:
        """Without the least useful edge: the one whose loss raises rho least per cost saved."""
        degree = adjacency.sum(axis=1)
        low = {i for i in range(len(degree)) if degree[i] <= self._bounds.min_degree}
        options = [pair for pair in self._present(adjacency) if not low.intersection(pair)]
        options = [pair for pair in options if _score(_flipped(adjacency, pair)).rho < 1]  # connected
        return self._best(adjacency, options, _per_saving)

    def rewired(self, adjacency: Adjacency) -> Adjacency | None:
        """The best edge added, the least useful one dropped: if rho is lower then, at no more cost."""
        denser = self.denser(adjacency)
        swapped = None if denser is None else self.sparser(denser)
        if swapped is None:
            return None
        before, after = self.rung(adjacency), self.rung(swapped)
        return swapped if after.rho < before.rho and after.cost <= before.cost * (1 + 1e-9) else None

    def _best(
        self,
        adjacency: Adjacency,
        options: Sequence[tuple[int, int]],
        rate: Callable[[float, float], float],
    ) -> Adjacency | None:
        now = _score(adjacency)

        def order(pair: tuple[int, int]) -> tuple[float, float, bytes]:
            then, cost = _score(_flipped(adjacency, pair)), self._cost[pair]
            gain = now.rho - then.rho
            if rate is _per_cost:
                gain = max(gain, 0.0)  # none is better than another if it has to wait for a third
            smooth = rate(now.smooth - then.smooth, cost)
            return -round(rate(gain, cost), DIGITS), -round(smooth, DIGITS), self._tie_break[pair]

        best = min(options, key=order, default=None)
        return None if best is None else _flipped(adjacency, best)

    def _present(self, adjacency: Adjacency) -> list[tuple[int, int]]:
        return [pair for pair in self._edges if adjacency[pair]]


def _per_cost(gain: float, cost: float) -> float:
    """Of an edge that is added and has to be paid for."""
    return gain / cost if gain > 0 else gain * cost


def _per_saving(gain: float, cost: float) -> float:
    """Of an edge that is dropped, which saves its cost."""
    return gain * cost if gain > 0 else gain / cost


def _score(adjacency: Adjacency) -> _Score:
    spectrum = _spectrum(adjacency)
    smooth = float((spectrum**SMOOTH).sum() ** (1 / SMOOTH))
    return _Score(round(float(spectrum[-1]), DIGITS), round(smooth, DIGITS))


def _spectrum(adjacency: Adjacency, gamma: float = 1.0) -> NDArray[np.float64]:
    """Absolute eigenvalues of (1 - gamma) I + gamma W - J, ascending."""
    m = len(adjacency)
    return np.sort(np.abs(np.linalg.eigvalsh(_weights(adjacency, gamma) - 1 / m))) if m else np.zeros(1)


def _weights(adjacency: Adjacency, gamma: float = 1.0) -> NDArray[np.float64]:
    """(1 - gamma) I + gamma W; W: w_ij = 1 / (1 + max(d_i, d_j))."""
    degree = adjacency.sum(axis=1)
    w: NDArray[np.float64] = gamma * adjacency / (1 + np.maximum.outer(degree, degree))
    w[np.diag_indices(len(adjacency))] = 1 - w.sum(axis=1)
    return w


def _flipped(adjacency: Adjacency, pair: tuple[int, int]) -> Adjacency:
    changed = adjacency.copy()
    changed[pair] = changed[pair[::-1]] = not adjacency[pair]
    return changed


def _hash(seed: int, e: Edge) -> bytes:
    return hashlib.blake2b(f"{seed}/{e[0]}/{e[1]}".encode(), digest_size=8).digest()
