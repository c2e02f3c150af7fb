"""The learning graph: a function of (members, kind, seed), so that every device computes the same graph.

`TOPOLOGIES` maps names to builders; a plugin may add one. A builder takes the device ids in natural order and
returns a connected undirected graph on them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from coordinator_free.seeded_random import blake2b_64, generator

Graph = nx.Graph  # nodes are device ids
ATTEMPTS = 32  # rings that `regular` draws at most for one that has no edge of the others


class Shape(NamedTuple):
    """Parameters of a topology (see peers.config.TopologyConfig).

    `chords`: additional offsets of `ring-chords`. `radius`: link range of `random-geometric` in the unit
    square. `degree`: neighbours of each device in `regular`, an even number.
    """

    kind: str = "full"
    chords: int = 1
    radius: float = 0.5
    seed: int = 0
    degree: int = 4


Builder = Callable[[Sequence[str], Shape], "Graph[str]"]
TOPOLOGIES: dict[str, Builder] = {}


def topology(name: str) -> Callable[[Builder], Builder]:
    """Decorator: register a builder under a name."""

    def add(build: Builder) -> Builder:
        TOPOLOGIES[name] = build
        return build

    return add


def natural(device: str) -> tuple[str, int, str]:
    """Sort key: d2 before d10."""
    match = re.search(r"^(.*?)(\d+)$", device)
    return (match.group(1), int(match.group(2)), device) if match else (device, -1, device)


def build(members: Sequence[str], shape: Shape) -> Graph[str]:
    """The graph on these members, in any order. The result is cached: do not change it."""
    return _built(frozenset(members), shape)


@lru_cache(maxsize=16)
def _built(members: frozenset[str], shape: Shape) -> Graph[str]:
    """Cached, because a device asks for the same graph several times a round."""
    return TOPOLOGIES[shape.kind](sorted(members, key=natural), shape)


@topology("full")
def full(members: Sequence[str], shape: Shape) -> Graph[str]:
    """Every device is linked with every other device."""
    return _on(members, itertools.combinations(members, 2))


@topology("ring")
def ring(members: Sequence[str], shape: Shape) -> Graph[str]:
    """A ring in natural order of the ids."""
    return _circulant(members, [1])


@topology("ring-chords")
def ring_chords(members: Sequence[str], shape: Shape) -> Graph[str]:
    """A ring and `chords` more circulant offsets, spread evenly over the half circle."""
    half = len(members) // 2
    offsets = [max(2, round(half * (i + 1) / shape.chords)) for i in range(shape.chords)]
    return _circulant(members, [1, *offsets])


@topology("regular")
def regular(members: Sequence[str], shape: Shape) -> Graph[str]:
    """`degree` neighbours for each device, at random: the edges of degree/2 rings.

    Some devices have fewer where no ring without repetitions was found. With degree + 1 devices or fewer,
    all are neighbours. Source: Law and Siu, "Distributed construction of random expander networks",
    2003: rings in random order are an expander, so paths have O(log N) hops. A hash draws the place of a
    device in each ring. A device that comes or goes therefore changes few edges.
    """
    if len(members) <= shape.degree + 1:
        return full(members, shape)
    graph = _on(members, [])
    for number in range(shape.degree // 2):
        graph.add_edges_from(_new_ring(members, graph, f"{shape.seed}/{number}"))
    return graph


def _new_ring(members: Sequence[str], graph: Graph[str], name: str) -> list[tuple[str, str]]:
    """The edges of a ring, none of which is in the graph already, if one of ATTEMPTS rings is like that."""
    edges: list[tuple[str, str]] = []
    for attempt in range(ATTEMPTS):
        prefix = name + "+" * attempt
        order = sorted(members, key=lambda member: blake2b_64(f"{prefix}/{member}".encode()))
        order = _without_repetition(order, graph)
        edges = list(zip(order, [*order[1:], *order[:1]], strict=True))
        if not any(graph.has_edge(*edge) for edge in edges):
            break
    return edges


def _without_repetition(order: list[str], graph: Graph[str]) -> list[str]:
    """The ring with some devices exchanged, so that few of its edges are in the graph already."""
    n = len(order)

    def repeats(*places: int) -> bool:
        return any(graph.has_edge(order[i - 1], order[i % n]) for at in places for i in (at, at + 1))

    for i in range(n if n > 3 else 0):
        for j in range(i + 1, i + n):
            if not graph.has_edge(order[i - 1], order[i]):
                break
            order[i], order[j % n] = order[j % n], order[i]
            if repeats(i, j % n):
                order[i], order[j % n] = order[j % n], order[i]
    return order


@topology("random-geometric")
def random_geometric(members: Sequence[str], shape: Shape) -> Graph[str]:
    """Devices at random in the unit square, linked within `radius`.

    The shortest links join separate components.
    """
    at = {device: position(device, shape.seed) for device in members}
    pairs = list(itertools.combinations(members, 2))
    length = {(a, b): math.dist(at[a], at[b]) for a, b in pairs}
    graph = _on(members, [pair for pair in pairs if length[pair] <= shape.radius])
    for a, b in sorted(pairs, key=lambda pair: (length[pair], pair)):
        if not nx.has_path(graph, a, b):
            graph.add_edge(a, b)
    return graph


def position(device: str, seed: int) -> tuple[float, float]:
    """A device's position in the unit square, a function of its id and the run's seed."""
    x, y = generator(seed, device, digest=blake2b_64).random(2)
    return float(x), float(y)


def _on(members: Sequence[str], edges: object) -> Graph[str]:
    graph: Graph[str] = nx.Graph()
    graph.add_nodes_from(members)
    graph.add_edges_from(edges)  # type: ignore[arg-type]
    return graph


def _circulant(members: Sequence[str], offsets: Sequence[int]) -> Graph[str]:
    n = len(members)
    if n < 2:
        return _on(members, [])
    return _on(members, [(members[i], members[(i + k) % n]) for i in range(n) for k in offsets if k % n])


def spectral_rho(matrix: NDArray[np.float64]) -> float:
    """rho = ||W - J||_2 with J = 11^T/M (method 5). `matrix`: W, [M, M]."""
    m = len(matrix)
    return float(np.linalg.norm(matrix - np.full((m, m), 1 / m), 2)) if m else 0.0
