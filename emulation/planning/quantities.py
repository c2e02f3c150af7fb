"""The form of the model: the terms of each figure, from the mathematics of the protocol (docs/plan.md).

A figure is a sum of terms with unknown positive factors. `regression.py` fits the factors to measured runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from emulation.planning.learning_graphs import GraphFigures, figures
from emulation.planning.measured_runs import MeasuredRun, Settings
from peers.protocol.similar_copies import REFRESH

Term = Callable[["Case"], float]


@dataclass(frozen=True)
class Case:
    """The variables of one run, measured or planned. churn: events a round, in the whole network.

    round_s, sent_bytes and learning_rounds (to 95 %, or those that were measured) are those of the run. A
    plan computes them first.
    """

    settings: Settings
    devices: int
    degree: int
    churn: float
    local_steps: int
    round_s: float
    sent_bytes: float
    learning_rounds: float

    @classmethod
    def of(cls, run: MeasuredRun) -> Case:
        """The variables of a measured run."""
        found = run.figures
        rounds = found.get("learnt_rounds", float(run.rounds))
        spent = found.get("round_s", 0.0), found.get("sent_bytes", 0.0), rounds
        return cls(run.settings, run.devices, run.degree, run.churn, run.local_steps, *spent)

    @property
    def graph(self) -> GraphFigures:
        return figures(self.devices, self.degree, self.settings.seed)


@dataclass(frozen=True)
class Quantity:
    """One figure. terms: by their meaning. known: a part of the figure that is not fitted.

    logarithmic: the terms are those of the logarithm of the figure.
    fits: which runs determine it. required: a plan is not possible without it.
    """

    name: str
    title: str
    unit: str
    terms: Mapping[str, Term]
    fits: Callable[[MeasuredRun], bool]
    known: Term = lambda case: 0.0
    required: bool = True
    logarithmic: bool = False

    def features(self, case: Case) -> list[float]:
        """The terms of a case, without their factors."""
        return [term(case) for term in self.terms.values()]


def is_free(run: MeasuredRun) -> bool:
    """Whether the budget has held nothing back."""
    return not run.figures.get("withheld", 0.0)


def _calm(run: MeasuredRun) -> bool:
    """Whether no device came or went, and the budget has held nothing back."""
    return is_free(run) and not run.churn


def _virtual(run: MeasuredRun) -> bool:
    return _calm(run) and run.clock == "virtual"


def _eventful(run: MeasuredRun) -> bool:
    """Whether devices came or went, and the budget has held nothing back."""
    return is_free(run) and run.churn > 0


def _real(run: MeasuredRun) -> bool:
    return run.clock == "real"


def _own(case: Case) -> float:
    return case.graph.links * case.settings.block_bytes


def _foreign(case: Case) -> float:
    return case.graph.copies * case.settings.block_bytes * sent_share(case)


def sent_share(case: Case) -> float:
    """The share of the foreign copies that is sent, as a mean over the rounds of learning.

    A copy whose norm grows evenly changes by 1/t of it in round t. It is sent if it has changed by the
    tolerance since it was sent last: in each of the first 1/tolerance rounds, later in a share
    1/(tolerance t) of the rounds, and in one round of REFRESH in any case (docs/exchange.md).
    """
    rounds = case.learning_rounds
    if not case.settings.tolerance:
        return 1.0
    early = 1 / case.settings.tolerance
    if rounds <= early:
        return 1.0
    if math.isinf(rounds):
        return 1 / REFRESH
    refreshed = max(0.0, rounds - REFRESH * early)  # the rounds in which only this sends copies
    return (early * (1 + math.log(min(rounds / early, REFRESH))) + refreshed / REFRESH) / rounds


OWN = Quantity(
    "own_bytes",
    "own block, in a round",
    "B",
    {"links x block": _own},
    _calm,
)
FOREIGN = Quantity(
    "foreign_bytes",
    "copies of foreign blocks, in a round",
    "B",
    {"copies x share sent x block": _foreign},
    _virtual,
)
TRANSFER = Quantity(
    "transfer_bytes",
    "state for newcomers, in a round",
    "B",
    {"events x block": lambda case: case.churn * case.settings.block_bytes},
    _eventful,
    required=False,
)
CONTROL = Quantity(
    "control_bytes",
    "control, in a round",
    "B",
    {
        "probe periods": lambda case: case.round_s / case.settings.probe_s,
        "links x parts": lambda case: case.graph.links * case.settings.groups * case.devices,
        "links": lambda case: case.graph.links,
    },
    _calm,
)
CHURN = Quantity(
    "churn_control_bytes",
    "control of events, in a round",
    "B",
    {"events": lambda case: case.churn},
    _eventful,
    required=False,
)
ROUND = Quantity(
    "round_s",
    "time of a round",
    "s",
    {
        "latency": lambda case: case.settings.latency_s,
        "time on the air": lambda case: case.sent_bytes / case.settings.rate_Bps,
    },
    _virtual,
    known=lambda case: case.local_steps * case.settings.step_s,
)
LEARNT = Quantity(
    "learnt_rounds",
    "rounds to 95 % of everyone's facts",
    "rounds",
    {
        "1": lambda case: 1.0,
        "ln N": lambda case: math.log(case.devices),
        "ln 1/gap": lambda case: -math.log(case.graph.gap),
    },
    _virtual,
    logarithmic=True,
)
MEMORY = Quantity(
    "pss_bytes",
    "memory of a device",
    "B",
    {
        "1": lambda case: 1.0,
        "N x block": lambda case: float(case.devices * case.settings.block_bytes),
    },
    _real,
    required=False,
)
CPU = Quantity(
    "cpu_s",
    "processor time of a device, in a round",
    "s",
    {"1": lambda case: 1.0, "N": lambda case: float(case.devices)},
    _real,
    required=False,
)
QUANTITIES = (OWN, FOREIGN, CONTROL, ROUND, LEARNT, TRANSFER, CHURN, MEMORY, CPU)
