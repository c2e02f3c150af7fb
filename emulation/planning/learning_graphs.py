"""Figures of the learning graph that the model needs: degree, spectral gap, copies without an estimate.

The topology is `regular`. Small graphs are built and measured. Larger ones get the limits of a random graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import networkx as nx
import numpy as np

from coordinator_free.averaging.mixing import metropolis_row
from coordinator_free.averaging.topology import Graph, Shape, build, spectral_rho

MOST_BUILT = 512  # devices whose graph is built: its matrix is dense


@dataclass(frozen=True)
class GraphFigures:
    """links: mean degree. rho: ||W - J||_2 of the mixing matrix W (method 5).

    unfollowed: sum over the neighbours j of a device, of the blocks whose copy at j the device cannot
    estimate (docs/exchange.md). built: False for the limits of large random graphs.
    """

    devices: int
    links: float
    rho: float
    unfollowed: float
    built: bool = True

    @property
    def mixing_rounds(self) -> float:
        """Rounds until a copy has spread over all devices: ln N / -ln rho, and at least 1."""
        return 1.0 if self.rho < 1e-9 else max(1.0, math.log(self.devices) / -math.log(self.rho))


@lru_cache(maxsize=256)
def figures(devices: int, degree: int, seed: int = 0) -> GraphFigures:
    """The figures of the graph `regular` on so many devices."""
    if devices > MOST_BUILT:
        return _limits(devices, degree)
    graph = build([f"d{n}" for n in range(devices)], Shape("regular", seed=seed, degree=degree))
    links = 2 * graph.number_of_edges() / devices
    return GraphFigures(devices, links, spectral_rho(_weights(graph)), _unfollowed(graph))


def _limits(devices: int, degree: int) -> GraphFigures:
    """A random graph of degree k: lambda_2 of its adjacency matrix is 2 sqrt(k - 1) (Friedman, 2008).

    Two neighbours have few common neighbours, and none in the limit. A ring (k = 2) has
    lambda_2 = 2 cos(2 pi / N) instead. W = (I + A) / (k + 1).
    """
    second = 2 * math.sqrt(degree - 1) if degree > 2 else 2 * math.cos(2 * math.pi / devices)
    return GraphFigures(devices, degree, (1 + second) / (1 + degree), degree * (devices - 2.0), built=False)


def _weights(graph: Graph[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The Metropolis-Hastings matrix W of a graph, [M, M]."""
    names = sorted(graph)
    at = {name: number for number, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)))
    for name in names:
        for other, weight in metropolis_row(graph, name).items():
            matrix[at[name], at[other]] = weight
    np.fill_diagonal(matrix, 0.0)
    np.fill_diagonal(matrix, 1 - matrix.sum(axis=1))
    return matrix


def _unfollowed(graph: Graph[str]) -> float:
    """The mean over devices. A device i follows at j its own block, and blocks of common neighbours."""
    n = graph.number_of_nodes()
    both = (n - 2 - len(list(nx.common_neighbors(graph, a, b))) for a, b in graph.edges)
    return 2 * sum(both) / n
