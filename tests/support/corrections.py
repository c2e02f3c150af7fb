"""A network of simulated devices that measure after a leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from coordinator_free.correction import lookahead
from coordinator_free.correction.residuals import Observables, copies_size, pack
from tests.support.simulated import GROUPS, Network, small_config

SKETCH = 16


def observed(device: str, epoch: int, **of: dict[str, float]) -> list[float]:
    """Observables of the groups; each device has a gradient of its own direction."""
    seed = sum(map(ord, device)) + epoch
    groups = []
    for group in GROUPS:
        sketch = np.random.default_rng(seed).standard_normal(SKETCH)
        known = {
            "energy": 1.0,
            "noise": 0.0,
            "curvature": 1.0,
            "smoothness": 1.0,
            "gap": 10.0,
            "rate": 0.01,
            "eta": 0.1,
        }
        copies = np.zeros(copies_size(SKETCH))
        groups.append(Observables(**{**known, **of.get(group, {})}, sketch=sketch, copies=copies))
    return [float(value) for value in pack(groups)]


def corrected(
    policy: str,
    size: int = 5,
    rounds: int = 30,
    drops: Mapping[tuple[str, str], float] | None = None,
    **correction: Any,
) -> Network:
    """A ring some rounds after a leave. drops: the results of trials."""
    tried = [] if drops is None else [float(drop) for drop in lookahead.pack(drops, GROUPS)]
    settings = {"policy": policy, "rounds": rounds, "period": 4, "delay": 3, "sketch": SKETCH, **correction}
    net = Network(small_config(topology={"kind": "ring"}, correction=settings, round={"local_steps": 2}))
    for device in net.cohort(size):
        device.measure = lambda name, epoch: [*observed(name, epoch, early={"curvature": 9.0}), *tried]
    net.rounds(3)
    net.signal(f"d{size - 1}", "leave")
    net.rounds(14)
    return net
