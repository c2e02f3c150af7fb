"""The ladder of learning graphs: which edges to add to the scenario's graph and which to remove (method 7).

The ladder is a function of (members, graph, cost of each feasible link, seed). Devices with equal inputs get
equal results without a message. `ladder` orders the graphs that are reachable from the scenario's graph by
density; a policy then chooses a rung for each layer group. A rung depends on the scenario's graph and not on
earlier decisions, so it is the same for a device that has just joined.

rho = ||W - J||_2, with the Metropolis-Hastings matrix W with the +1, is rounded to 1e-9 before comparisons,
because the last bits of LAPACK's results differ between machines. A seeded hash of the edge breaks ties.
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
DIGITS = 9  # decimal digits of rho in comparisons
SMOOTH = 8  # order of the Schatten norm that replaces rho where no single edge lowers rho


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of node degrees, of edge swaps, and of edges added to (`up`) and removed from (`down`) the base
    graph.
    """

    min_degree: int = 1
    max_degree: int = 1 << 30
    swaps: int = 2
    up: int = 6
    down: int = 6


@dataclass(frozen=True, slots=True)
class Rung:
    """One graph of the ladder.

    `rho`: ||W - J||_2. `cost`: of all its edges, in the unit of the given costs. `modes`: the eigenvalues of
    W without that of the mean, ascending.
    """

    edges: frozenset[Edge]
    rho: float
    cost: float
    modes: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Ladder:
    """rungs[base + k] is k steps denser than rungs[base], the scenario's graph restricted to feasible
    links.
    """

    rungs: tuple[Rung, ...]
    base: int

    @property
    def top(self) -> int:
        """The densest rung, relative to the base."""
        return len(self.rungs) - 1 - self.base

    def clipped(self, rung: int) -> int:
        """The nearest existing rung, relative to the base."""
        return min(max(rung, -self.base), self.top)

    def at(self, rung: int) -> Rung:
        """The graph of a rung relative to the base, clipped."""
        return self.rungs[self.base + self.clipped(rung)]

    def added(self, rung: int) -> tuple[Edge, ...]:
        """Edges of a rung that the base does not have, sorted."""
        return tuple(sorted(self.at(rung).edges - self.at(0).edges))

    def dropped(self, rung: int) -> tuple[Edge, ...]:
        """Edges of the base that a rung does not have, sorted."""
        return tuple(sorted(self.at(0).edges - self.at(rung).edges))


def edge(a: str, b: str) -> Edge:
    """The edge between two devices, ids in ascending order."""
    return (a, b) if a < b else (b, a)


def rho(graph: Graph[str], gamma: float = 1.0) -> float:
    """||W - J||_2 of (1 - gamma) I + gamma W with Metropolis-Hastings weights."""
    adjacency = nx.to_numpy_array(graph, nodelist=sorted(graph)) > 0
    return float(_spectrum(adjacency, gamma)[-1])


def ladder(
    members: Sequence[str], graph: Graph[str], costs: Mapping[Edge, float], seed: int, bounds: Bounds
) -> Ladder:
    """Build the ladder. `costs`: of every feasible link, > 0, with keys as `edge` makes them.

    Upwards: swaps (add one edge, remove one) that lower rho at no additional cost, then more edges, each the
    one that lowers rho most per cost. Downwards: each time the least useful edge is removed. A single edge
    may raise rho (one chord in a ring of 6 does; three lower it), so graphs that are no better than a sparser
    one are not rungs. Every rung is connected, on feasible links and within the degree bounds, with the
    exception that `start` states.
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
    """The rungs whose rho is below that of all sparser rungs before them."""
    better = []
    for rung in rungs:
        if rung.rho < beat:
            better.append(rung)
            beat = rung.rho
    return better


class _Score(NamedTuple):
    """rho, and a smooth substitute for it."""

    rho: float
    smooth: float


class _Search:
    """Single steps between graphs. A step returns None if no change is allowed."""

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
        """The graphs after each of up to `times` steps."""
        made: list[Adjacency] = []
        while len(made) < times:
            following = step([adjacency, *made][-1])
            if following is None:
                break
            made.append(following)
        return made

    def rung(self, adjacency: Adjacency) -> Rung:
        """The rung of a graph."""
        pairs = self._present(adjacency)
        cost = sum(self._cost[pair] for pair in pairs)
        edges = frozenset(self._edges[pair] for pair in pairs)
        modes = tuple(map(float, np.linalg.eigvalsh(_weights(adjacency))[:-1].round(DIGITS)))
        return Rung(edges, max(map(abs, modes), default=0.0), cost, modes)

    def start(self, graph: Graph[str]) -> Adjacency:
        """The scenario's graph on feasible links.

        If it is not connected, the cheapest feasible links connect it. Infeasible links of the scenario's
        graph stay if feasible ones do not suffice.
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
        """Add the edge that lowers rho most per cost, or else the one that lowers the smooth substitute most
        per cost.
        """
        degree = adjacency.sum(axis=1)
        full = {i for i in range(len(degree)) if degree[i] >= self._bounds.max_degree}
        options = [p for p in sorted(self._feasible) if not adjacency[p] and not full.intersection(p)]
        return self._best(adjacency, options, _per_cost)

    def sparser(self, adjacency: Adjacency) -> Adjacency | None:
        """Remove the least useful edge: the one that raises rho least per cost saved."""
        degree = adjacency.sum(axis=1)
        low = {i for i in range(len(degree)) if degree[i] <= self._bounds.min_degree}
        options = [pair for pair in self._present(adjacency) if not low.intersection(pair)]
        options = [pair for pair in options if _score(_flipped(adjacency, pair)).rho < 1]  # connected
        return self._best(adjacency, options, _per_saving)

    def rewired(self, adjacency: Adjacency) -> Adjacency | None:
        """Add the best edge and remove the least useful one, if rho falls at no additional cost."""
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
        """Flip the edge in `options` with the best rate."""
        now = _score(adjacency)

        def order(pair: tuple[int, int]) -> tuple[float, float, bytes]:
            then, cost = _score(_flipped(adjacency, pair)), self._cost[pair]
            gain = now.rho - then.rho
            if rate is _per_cost:
                gain = max(
                    gain, 0.0
                )  # edges that do not lower rho are equal here; the smooth substitute decides
            smooth = rate(now.smooth - then.smooth, cost)
            return -round(rate(gain, cost), DIGITS), -round(smooth, DIGITS), self._tie_break[pair]

        best = min(options, key=order, default=None)
        return None if best is None else _flipped(adjacency, best)

    def _present(self, adjacency: Adjacency) -> list[tuple[int, int]]:
        return [pair for pair in self._edges if adjacency[pair]]


def _per_cost(gain: float, cost: float) -> float:
    """The rate of an added edge, which must be paid for."""
    return gain / cost if gain > 0 else gain * cost


def _per_saving(gain: float, cost: float) -> float:
    """The rate of a removed edge, which saves its cost."""
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
    """(1 - gamma) I + gamma W with w_ij = 1 / (1 + max(d_i, d_j)), [M, M]."""
    degree = adjacency.sum(axis=1)
    w: NDArray[np.float64] = gamma * adjacency / (1 + np.maximum.outer(degree, degree))
    w[np.diag_indices(len(adjacency))] = 1 - w.sum(axis=1)
    return w


def _flipped(adjacency: Adjacency, pair: tuple[int, int]) -> Adjacency:
    """The graph with one edge added or removed."""
    changed = adjacency.copy()
    changed[pair] = changed[pair[::-1]] = not adjacency[pair]
    return changed


def _hash(seed: int, e: Edge) -> bytes:
    return hashlib.blake2b(f"{seed}/{e[0]}/{e[1]}".encode(), digest_size=8).digest()
