"""Six devices on a ring that minimise quadratics, diagnose themselves and correct under a policy.

The loss of device i is sum_g 1/2 (x_g - a_ig)^T H_ig (x_g - a_ig) with H_ig diagonal, so the true gap is
known.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np

from coordinator_free.averaging.mixing import metropolis_row
from coordinator_free.correction.policies import SCHEDULES, decide
from coordinator_free.correction.policy_interface import (
    GroupAction,
    GroupView,
    Limits,
    Memory,
    Settings,
    View,
)
from coordinator_free.correction.residuals import (
    COPIES_PART,
    Observables,
    pack,
    priorities,
    residuals,
    unpack,
)
from tests.support.diagnoses import GROUPS, LADDER, MEMBERS

M, D, PERIOD, ROUNDS = len(MEMBERS), 8, 5, 60
LIMITS = Limits(GroupAction(4), steps_max=9, prox_min=1e-2, prox_max=0.3)


@dataclass(frozen=True)
class Regime:
    """Per group: smallest and largest curvature, spread of centres, distance to the optimum, spread of
    copies.
    """

    curvature: tuple[tuple[float, float], ...]
    spread: tuple[float, ...]
    start: tuple[float, ...]
    copies: tuple[float, ...]
    mixed: float = 0.0  # log spread of curvatures over devices
    eta: float = 0.1


REGIMES = {
    "curvature": Regime(((0.5, 1), (0.5, 1), (0.02, 1)), (0.05,) * 3, (0.3, 0.3, 3.0), (0.0,) * 3),
    "consensus": Regime(((0.3, 1),) * 3, (0.05, 0.05, 1.0), (0.3,) * 3, (0.1, 0.1, 5.0), eta=0.02),
    "heterogeneity": Regime(((0.3, 1),) * 3, (0.1, 0.1, 5.0), (0.3,) * 3, (0.0,) * 3, mixed=0.5),
}


def weights(rung: int) -> np.ndarray:
    """The mixing matrix W of a rung, [M, M]."""
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(MEMBERS)
    graph.add_edges_from(LADDER.at(rung).edges)
    w = np.zeros((M, M))
    for i, device in enumerate(MEMBERS):
        for peer, weight in metropolis_row(graph, device).items():
            w[i, MEMBERS.index(peer)] = weight
        w[i, i] = 1 - w[i].sum()
    return w


class World:
    """The parameters x_g of all devices, [M, D] per group, and the bytes sent so far."""

    def __init__(self, regime: Regime, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.eta, self.bytes = regime.eta, 0.0
        self.h, self.a, self.best, self.x = {}, {}, {}, {}
        for i, g in enumerate(GROUPS):
            self.h[g] = np.geomspace(*regime.curvature[i], D) * np.exp(
                regime.mixed * draw.standard_normal((M, D))
            )
            self.a[g] = regime.spread[i] * draw.standard_normal((M, D))
            self.best[g] = (self.h[g] * self.a[g]).mean(0) / self.h[g].mean(0)
            mean = self.best[g] + regime.start[i] * draw.standard_normal(D)
            self.x[g] = mean + regime.copies[i] * draw.standard_normal((M, D))
        self.anchor = {g: x.mean(0) for g, x in self.x.items()}

    def gap(self) -> float:
        """The true gap of the mean model."""
        away = {g: self.x[g].mean(0) - self.best[g] for g in GROUPS}
        return sum(float((self.h[g].mean(0) * away[g] ** 2).sum()) / 2 for g in GROUPS)

    def round(self, settings: Settings, k: int) -> None:
        for g, action in settings.items():
            for _ in range(action.steps):
                drift = action.prox * (self.x[g] - self.anchor[g])
                self.x[g] = self.x[g] - self.eta * (self.h[g] * (self.x[g] - self.a[g]) + drift)
            if k % action.period == 0:
                w = (1 - action.gamma) * np.eye(M) + action.gamma * weights(action.rung)
                self.x[g] = w @ self.x[g]
                self.bytes += LADDER.at(action.rung).cost

    def view(self, index: int, settings: Settings) -> View:
        told = [pack([self.observed(i, g) for g in GROUPS]) for i in range(M)]
        means = unpack(np.mean(told, axis=0), GROUPS, M)
        shares = priorities(means)
        shown = {
            g: GroupView(
                residuals(means[g], settings[g].steps, c=0.25), shares[g].share, means[g].rate, self.eta, 1.0
            )
            for g in GROUPS
        }
        return View(index, PERIOD, shown, LADDER, 0)

    def observed(self, i: int, g: str) -> Observables:
        gradient = self.h[g][i] * (self.x[g][i] - self.a[g][i])
        high, low = float(self.h[g].mean(0).max()), float(self.h[g].mean(0).min())
        return Observables(
            energy=float(gradient @ gradient),
            noise=0.0,
            curvature=high,
            smoothness=high,
            gap=self.own_gap(i),
            rate=self.eta * low,
            eta=self.eta,
            sketch=np.pad(gradient, (0, (COPIES_PART - 1) * D)),
            copies=self.x[g][i],
        )

    def own_gap(self, i: int) -> float:
        """The loss of one device above its own minimum."""
        return sum(float(self.h[g][i] @ (self.x[g][i] - self.a[g][i]) ** 2) / 2 for g in GROUPS)


def correct(policy: str, regime: str, seed: int) -> tuple[float, float, list[str]]:
    """Run a correction. Returns the final gap, the bytes, and the reasons of the decisions."""
    world, memory, reasons = World(REGIMES[regime], seed), Memory(), []
    settings: Settings = dict.fromkeys(GROUPS, LIMITS.base)
    for k in range(ROUNDS):
        if policy in SCHEDULES:
            settings = dict.fromkeys(GROUPS, SCHEDULES[policy](k, ROUNDS, LIMITS))
        elif k % PERIOD == 0:
            made = decide(policy, world.view(k // PERIOD, settings), LIMITS, memory)
            memory, settings = made.memory, made.settings
            reasons.append(made.reason)
        world.round(settings, k)
    return world.gap(), world.bytes, reasons
