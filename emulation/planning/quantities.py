"""The form of the model: the terms of each figure, from the mathematics of the protocol (docs/plan.md).

A figure is a sum of terms with unknown positive factors. `regression.py` fits the factors to measured runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from emulation.planning.learning_graphs import GraphFigures, figures
from emulation.planning.measured_runs import MeasuredRun, Settings

Term = Callable[["Case"], float]


@dataclass(frozen=True)
class Case:
    """The variables of one run, measured or planned. churn: events a round, in the whole network.

    round_s and sent_bytes are those of the run; a plan computes them first.
    """

    settings: Settings
    devices: int
    degree: int
    churn: float
    local_steps: int
    round_s: float
    sent_bytes: float

    @classmethod
    def of(cls, run: MeasuredRun) -> Case:
        """The variables of a measured run."""
        found = run.figures
        spent = found.get("round_s", 0.0), found.get("sent_bytes", 0.0)
        return cls(run.settings, run.devices, run.degree, run.churn, run.local_steps, *spent)

    @property
    def graph(self) -> GraphFigures:
        return figures(self.devices, self.degree, self.settings.seed)


@dataclass(frozen=True)
class Quantity:
    """One figure. terms: by their meaning. known: a part of the figure that is not fitted.

    fits: which runs determine it. required: a plan is not possible without it.
    """

    name: str
    title: str
    unit: str
    terms: Mapping[str, Term]
    fits: Callable[[MeasuredRun], bool]
    known: Term = lambda case: 0.0
    required: bool = True

    def features(self, case: Case) -> list[float]:
        """The terms of a case, without their factors."""
        return [term(case) for term in self.terms.values()]


def _free(run: MeasuredRun) -> bool:
    """Whether the budget has held nothing back."""
    return not run.figures.get("withheld", 0.0)


def _calm(run: MeasuredRun) -> bool:
    """Whether no device came or went, and the budget has held nothing back."""
    return _free(run) and not run.churn


def _virtual(run: MeasuredRun) -> bool:
    return _calm(run) and run.clock == "virtual"


def _own(case: Case) -> float:
    return case.graph.links * case.settings.block_bytes


def _foreign(case: Case) -> float:
    return case.graph.unfollowed * case.settings.block_bytes


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
    {
        "copies / N": lambda case: _foreign(case) / case.devices,
        "copies": _foreign,
    },
    _virtual,
)
TRANSFER = Quantity(
    "transfer_bytes",
    "state for newcomers, in a round",
    "B",
    {"events x block": lambda case: case.churn * case.settings.block_bytes},
    lambda run: _free(run) and run.churn > 0,
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
    lambda run: _free(run) and run.churn > 0,
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
        "N": lambda case: float(case.devices),
        "mixing rounds": lambda case: case.graph.mixing_rounds,
    },
    _virtual,
)
MEMORY = Quantity(
    "pss_bytes",
    "memory of a device",
    "B",
    {
        "1": lambda case: 1.0,
        "N x block": lambda case: float(case.devices * case.settings.block_bytes),
    },
    lambda run: run.clock == "real",
    required=False,
)
CPU = Quantity(
    "cpu_s",
    "processor time of a device, in a round",
    "s",
    {"1": lambda case: 1.0, "N": lambda case: float(case.devices)},
    lambda run: run.clock == "real",
    required=False,
)
QUANTITIES = (OWN, FOREIGN, CONTROL, ROUND, LEARNT, TRANSFER, CHURN, MEMORY, CPU)
