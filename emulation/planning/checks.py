"""Checks the whole forecast on runs of a size that the model has not seen.

A check takes nothing from the run but its size, degree, churn, budget and local steps. So the errors of all
figures that a figure depends on are in its error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from emulation.planning.forecast import Wanted, is_determined, measurable
from emulation.planning.measured_runs import MeasuredRun
from emulation.planning.model import Model, fit_runs
from emulation.planning.quantities import (
    CHURN,
    CONTROL,
    CPU,
    LEARNT,
    MEMORY,
    OWN,
    QUANTITIES,
    Quantity,
    is_free,
)
from emulation.planning.regression import Estimate

OF_REAL_TIME = (OWN, MEMORY, CPU)  # the others depend on the time of a round on the machine that measured


@dataclass(frozen=True)
class Check:
    """One figure of a run of the held-out size, and its forecast from the other sizes."""

    quantity: Quantity
    run: MeasuredRun
    measured: float
    predicted: Estimate

    @property
    def error(self) -> float:
        """Relative to the measured value."""
        return self.predicted.middle / self.measured - 1

    @property
    def covered(self) -> bool:
        return self.predicted.holds(self.measured)


def _is_tight(run: MeasuredRun) -> bool:
    """Whether the budget has held something back. No such run is in a fit of rounds."""
    return not is_free(run) and not run.churn


SUBJECTS: tuple[tuple[Quantity, Callable[[MeasuredRun], bool]], ...] = (
    *((quantity, quantity.fits) for quantity in QUANTITIES if quantity is not CHURN),
    (CONTROL, CHURN.fits),  # the control of events is measured as a part of control
    (LEARNT, _is_tight),
)


def held_out(runs: Sequence[MeasuredRun], size: int | None = None) -> list[Check]:
    """Forecast the runs of a size from the runs of all other sizes.

    `size` None: for each figure, the largest size that the others determine. A figure that they do not
    determine has no check.
    """
    sizes = sorted({run.devices for run in runs}, reverse=True) if size is None else [size]
    model = cache(lambda size: fit_runs([run for run in runs if run.devices != size]))
    return [check for subject in SUBJECTS for check in _first(subject, runs, sizes, model)]


def _first(
    subject: tuple[Quantity, Callable[[MeasuredRun], bool]],
    runs: Sequence[MeasuredRun],
    sizes: Sequence[int],
    model: Callable[[int], Model],
) -> list[Check]:
    """The checks of the first size that has any."""
    quantity, fits = subject
    for size in sizes:
        of_size = [run for run in runs if run.devices == size and fits(run)]
        found = [check for run in of_size for check in _checks(quantity, run, model(size))]
        if found:
            return found
    return []


def _checks(quantity: Quantity, run: MeasuredRun, model: Model) -> Iterator[Check]:
    measured, wanted = run.value(quantity.name), wanted_of(run)
    if not measured or (run.clock == "real" and quantity not in OF_REAL_TIME):
        return
    if is_free(run) or is_determined(model, wanted):
        predicted = measurable(model, wanted).get(quantity.name)
        if predicted is not None:
            yield Check(quantity, run, measured, predicted)


def wanted_of(run: MeasuredRun) -> Wanted:
    """The plan of a run as it was before the run. A run that did not learn everything has only its length."""
    over = None if LEARNT.name in run.figures else run.rounds
    shape = run.devices, run.degree, run.churn, run.budget_bytes, run.local_steps
    return Wanted(*shape, over_rounds=over)
