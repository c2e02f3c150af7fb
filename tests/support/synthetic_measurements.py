"""Measured runs with known parameters, for the model of `unweft plan`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from emulation.planning.measured_runs import MeasuredRun, Settings
from emulation.planning.quantities import (
    CHURN,
    CONTROL,
    CPU,
    FOREIGN,
    LEARNT,
    MEMORY,
    OWN,
    QUANTITIES,
    ROUND,
    TRANSFER,
    Case,
    Quantity,
)

SETTINGS = Settings(
    model="tiny",
    rank=2,
    input_width=128,
    groups=3,
    block_bytes=18_432,
    codec="fp16",
    mode="average",
    tolerance=0.02,
    topology="regular",
    seed=0,
    step_s=0.05,
    latency_s=0.005,
    rate_Bps=5e7,
    probe_s=0.5,
)
KNOWN = {  # the factors of each figure, by name
    OWN.name: [1.05],
    FOREIGN.name: [0.5],
    CONTROL.name: [160.0, 12.0, 150.0],
    ROUND.name: [1.1, 0.9],
    LEARNT.name: [math.log(2.0), 1.6, 0.5],
    TRANSFER.name: [0.4],
    CHURN.name: [3000.0],
    MEMORY.name: [7e7, 2.5],
    CPU.name: [0.02, 1e-3],
}
BUDGET = 4_000_000


def case(devices: int, degree: int = 4, churn: float = 0.0) -> Case:
    """The variables of a run with these settings."""
    return Case(SETTINGS, devices, degree, churn, 5, 0.26, 0.0, 0.0)


def measured(
    devices: int,
    degree: int = 4,
    churn: float = 0.0,
    clock: str = "virtual",
    noise: float = 0.0,
    draw: np.random.Generator | None = None,
) -> MeasuredRun:
    """A run whose figures follow the model. noise: standard deviation of the relative errors."""
    draw = draw or np.random.default_rng(0)
    errors = {quantity.name: math.exp(noise * draw.standard_normal()) for quantity in QUANTITIES}
    of, figures = case(devices, degree, churn), {"withheld": 0.0, "sent_bytes": 0.0}
    for _ in range(30):  # a round takes longer with more control, and has more control then
        for quantity in (LEARNT, OWN, FOREIGN, TRANSFER, MEMORY, CPU, CONTROL, ROUND):
            value = _sum(quantity, of)
            value = math.exp(value) if quantity.logarithmic else value
            figures[quantity.name] = value * errors[quantity.name]
            of = replace(of, learning_rounds=figures[LEARNT.name])
        figures[CONTROL.name] += _sum(CHURN, of)
        figures["sent_bytes"] = sum(figures[q.name] for q in (OWN, FOREIGN, CONTROL, TRANSFER))
        figures[ROUND.name] += ROUND.known(of)
        of = replace(of, sent_bytes=figures["sent_bytes"], round_s=figures[ROUND.name])
    return MeasuredRun.model_validate(
        {
            "clock": clock,
            "devices": devices,
            "degree": degree,
            "churn": churn,
            "budget_bytes": BUDGET,
            "local_steps": 5,
            "rounds": 40,
            "settings": SETTINGS,
            "figures": figures,
        }
    )


def measurements(
    sizes: tuple[int, ...] = (8, 12, 16, 24, 32), noise: float = 0.0, seed: int = 0, churn: float = 0.2
) -> list[MeasuredRun]:
    """Runs of these sizes with two degrees, with real devices, and with churn."""
    draw = np.random.default_rng(seed)
    return [
        run
        for n in sizes
        for run in (
            measured(n, noise=noise, draw=draw),
            measured(n, degree=2, noise=noise, draw=draw),
            measured(n, clock="real", noise=noise, draw=draw),
            *([measured(n, churn=churn, noise=noise, draw=draw)] if churn else []),
        )
    ]


def _sum(quantity: Quantity, of: Case) -> float:
    """The terms times their known factors."""
    return float(np.dot(KNOWN[quantity.name], quantity.features(of)))
