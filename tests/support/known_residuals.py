"""Devices whose losses are quadratics with known L, mu, rho and zeta. They measure themselves as devices do.

The loss of an example c of device i is 1/2 (x - a_ic)^T H (x - a_ic) with a_ic ~ N(a_i, H^-1), of which the
Fisher information is H. H is mu, and L in the first direction. Devices descend with step size eta and mix
over a ring.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch

from coordinator_free.averaging.mixing import metropolis_row
from coordinator_free.correction.residuals import (
    Means,
    Observables,
    Residuals,
    copies_size,
    effective_eta,
    heterogeneity,
    pack,
    rate_from_gaps,
    residuals,
    sampling_noise,
    unpack,
)
from peers.learning.curvature import largest_eigenvalue, smoothness

M, D, EXAMPLES, SAMPLED, SKETCH = 6, 5, 48, 16, 32
MEMBERS = [f"d{i}" for i in range(M)]


@dataclass(frozen=True)
class Known:
    """away: ||x-bar - a-bar||. spread: rms distance of a_i from a-bar. copies: rms distance of x_i from
    x-bar, in the direction of L.
    """

    away: float
    spread: float
    copies: float
    smoothness: float = 1.0  # L
    mu: float = 0.5
    eta: float = 0.02
    steps: int = 4


class World:
    """x: [M, D]. true: the residuals by the formulas of method 6, from the known constants."""

    def __init__(self, known: Known, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.known, self._draw = known, draw
        self.h = np.full(D, known.mu)
        self.h[0] = known.smoothness
        flat = np.eye(D)[1:]  # the directions of mu
        apart = draw.standard_normal((M, D - 1))
        apart -= apart.mean(axis=0)
        centres = known.spread * apart / np.sqrt(np.square(apart).sum(axis=1).mean()) @ flat
        scatter = np.stack([np.sqrt(EXAMPLES) * _orthonormal(draw) for _ in range(M)]) / np.sqrt(self.h)
        self.examples = centres[:, None] + scatter
        self.centres = centres
        far = draw.standard_normal(D - 1)
        signs = np.resize([1.0, -1.0], M)
        self.x = known.away * (far / np.linalg.norm(far)) @ flat + known.copies * np.outer(
            signs, np.eye(D)[0]
        )
        self.signs = draw.choice([-1.0, 1.0], size=D)

    def gap(self, i: int) -> float:
        """The loss of device i above its floor."""
        return float(self.h @ np.square(self.x[i] - self.centres[i])) / 2

    def true(self) -> Residuals:
        known, mean = self.known, self.x.mean(axis=0)
        zeta2 = float(np.square(self.h * (self.centres - self.centres.mean(axis=0))).sum()) / M
        rate = known.eta * known.mu
        return Residuals(
            float(self.h @ np.square(mean - self.centres.mean(axis=0))) / 2,
            known.smoothness * float(np.square(self.x - mean).sum()) / M / 2,
            heterogeneity(known.smoothness, known.eta, known.steps, zeta2, rate) / 4,
        )

    def descend(self) -> list[list[float]]:
        """The local steps of a round: the gaps of each device, and its move."""
        gaps: list[list[float]] = [[] for _ in range(M)]
        for _ in range(self.known.steps):
            for i in range(M):
                gaps[i].append(self.gap(i))
            self.x = self.x - self.known.eta * self.h * (self.x - self.centres)
        return gaps

    def mix(self) -> None:
        ring = nx.cycle_graph(MEMBERS)
        for_all = [metropolis_row(ring, device) for device in MEMBERS]
        w = np.array([[row.get(peer, 0.0) for peer in MEMBERS] for row in for_all])
        self.x = (w + np.diag(1 - w.sum(axis=1))) @ self.x

    def measured(self) -> Means:
        """A round of steps from here and back, for the rate and eta; then the diagnosis of this state."""
        kept = self.x
        gaps = self.descend()
        moves, self.x = np.linalg.norm(self.x - kept, axis=1), kept
        reports = [pack([self._observed(i, gaps[i], float(moves[i]))]) for i in range(M)]
        return unpack(np.mean(reports, axis=0), ["all"], M)["all"]

    def diagnosed(self) -> Residuals:
        return residuals(self.measured(), self.known.steps, c=0.25)

    def _observed(self, i: int, gaps: list[float], move: float) -> Observables:
        rows = self._draw.choice(EXAMPLES, size=SAMPLED, replace=False)
        shares = self.h * (self.x[i] - self.examples[i, rows]) / SAMPLED
        gradient, gram = shares.sum(axis=0), shares @ shares.T
        curvature = largest_eigenvalue(torch.from_numpy(gram), EXAMPLES)
        exact = float(np.linalg.norm(self.h * (self.x[i] - self.centres[i])))
        return Observables(
            energy=float(gradient @ gradient),
            noise=sampling_noise(gram, EXAMPLES),
            curvature=curvature,
            smoothness=smoothness(torch.from_numpy(gram), EXAMPLES),
            gap=self.gap(i),
            rate=rate_from_gaps([gaps]),
            eta=effective_eta(move, self.known.steps, exact),
            sketch=np.pad(gradient, (0, SKETCH - D)),
            copies=np.pad(self.x[i], (0, copies_size(SKETCH) - D)),
        )


def _orthonormal(draw: np.random.Generator) -> np.ndarray:
    """Columns of mean 0, length 1 and right angles, [EXAMPLES, D]: a sample whose covariance is known."""
    columns = draw.standard_normal((EXAMPLES, D))
    q: np.ndarray = np.linalg.qr(columns - columns.mean(axis=0))[0]
    return q
