"""Figures of the learning graph that the model needs: degree and spectral gap.

The topology is `regular`. Small graphs are built and measured. Larger ones get the limits of a random graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from coordinator_free.averaging.mixing import metropolis_row
from coordinator_free.averaging.topology import Graph, Shape, build

MOST_BUILT = 300  # devices whose graph is built: its matrix is dense


@dataclass(frozen=True)
class GraphFigures:
    """links: mean degree. rho: ||W - J||_2 of the mixing matrix W (method 5).

    built: False for the limits of large random graphs.
    """

    devices: int
    links: float
    rho: float
    built: bool = True

    @property
    def gap(self) -> float:
        """1 - rho: the share of a disagreement that a round of mixing removes at least."""
        return 1.0 - self.rho

    @property
    def copies(self) -> float:
        """Copies of foreign blocks that a device holds for its neighbours to take, summed over its links.

        On a complete graph all copies are equal after a round, so none is sent.
        """
        return 0.0 if self.links >= self.devices - 1 else self.links * (self.devices - 1)


@lru_cache(maxsize=256)
def figures(devices: int, degree: int, seed: int = 0) -> GraphFigures:
    """The figures of the graph `regular` on so many devices."""
    if devices > MOST_BUILT:
        return _limits(devices, degree)
    graph = build([f"d{n}" for n in range(devices)], Shape("regular", seed=seed, degree=degree))
    links = 2 * graph.number_of_edges() / devices
    return GraphFigures(devices, links, _rho(_weights(graph)))


def _limits(devices: int, degree: int) -> GraphFigures:
    """A random graph of degree k: lambda_2 of its adjacency matrix is 2 sqrt(k - 1) (Friedman, 2008).

    A ring (k = 2) has lambda_2 = 2 cos(2 pi / N) instead. W = (I + A) / (k + 1). With k >= N - 1 neighbours,
    the graph is complete, as `regular` builds it.
    """
    if degree >= devices - 1:
        return GraphFigures(devices, devices - 1, 0.0)
    second = 2 * math.sqrt(degree - 1) if degree > 2 else 2 * math.cos(2 * math.pi / devices)
    return GraphFigures(devices, degree, (1 + second) / (1 + degree), built=False)


def _rho(weights: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """||W - J||_2 of a symmetric W: the largest |eigenvalue|, without the 1 of the mean."""
    values = np.linalg.eigvalsh(weights)
    return float(max(abs(values[0]), abs(values[-2])))


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
