"""Fits all figures of the model to measured runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emulation.planning.measured_runs import BENCHMARK, MeasuredRun, Settings
from emulation.planning.quantities import CHURN, CONTROL, LEARNT, QUANTITIES, Case, Quantity
from emulation.planning.regression import Estimate, Fit, fit
from peers.errors import InputError

LEAST_SIZES = 4  # one is held out, and two terms need three


@dataclass(frozen=True)
class Model:
    """The fitted figures by name. `sizes`, `degrees`: that were measured.

    local_steps: those of the runs that measured the rounds to 95 %, which have no term for them.
    """

    settings: Settings
    fits: dict[str, Fit]
    sizes: tuple[int, ...]
    degrees: tuple[int, ...]
    local_steps: tuple[int, ...]

    def estimate(self, quantity: Quantity, case: Case) -> Estimate | None:
        """The prediction of one figure; None if it was not measured."""
        found = self.fits.get(quantity.name)
        if found is None:
            return None
        known = quantity.known(case)
        return Estimate(*(known + value for value in found.predict(quantity.features(case))))


def fit_model(runs: Sequence[MeasuredRun]) -> Model:
    """Raises InputError if there are too few sizes, or if a required figure is not determined."""
    sizes = sorted({run.devices for run in runs})
    if len(sizes) < LEAST_SIZES:
        raise InputError(
            f"--fit: {len(runs)} measured runs of the sizes {sizes}; allowed: runs of {LEAST_SIZES} sizes or"
            f" more (`{BENCHMARK} --sizes N,N,N,N --json FILE`)"
        )
    model = fit_runs(runs)
    for quantity in QUANTITIES:
        if quantity.required and quantity.name not in model.fits:
            of = [run.devices for run, _, _ in _observations(quantity, runs, model)]
            raise InputError(
                f"--fit: {quantity.title}: its {len(quantity.terms)} terms are not determined by {len(of)}"
                f" measured runs of the sizes {sorted({*of})}; allowed: more sizes or degrees"
            )
    return model


def fit_runs(runs: Sequence[MeasuredRun]) -> Model:
    """All figures that the runs determine. The others have no fit."""
    found: dict[str, Fit] = {}
    model = Model(
        runs[0].settings,
        found,
        tuple(sorted({run.devices for run in runs})),
        tuple(sorted({run.degree for run in runs})),
        tuple(sorted({run.local_steps for run in runs if _has(run, LEARNT)})),
    )
    for quantity in QUANTITIES:
        rows = list(_rows(quantity, runs, model))
        terms, values, sizes = [x for x, _, _ in rows], [y for _, y, _ in rows], [n for _, _, n in rows]
        one = fit(terms, values, sizes, quantity.logarithmic) if rows else None
        if one is not None:
            found[quantity.name] = one
    return model


def _rows(
    quantity: Quantity, runs: Sequence[MeasuredRun], model: Model
) -> Iterator[tuple[list[float], float, int]]:
    """Features, value and size of each observation. Where all features are 0, nothing can be learnt."""
    for _, case, value in _observations(quantity, runs, model):
        features, rest = quantity.features(case), value - quantity.known(case)
        if rest > 0 and any(features):
            yield features, rest, case.devices


def _has(run: MeasuredRun, quantity: Quantity) -> bool:
    return run.value(_measured_name(quantity)) is not None and quantity.fits(run)


def _measured_name(quantity: Quantity) -> str:
    """The control of events is what is measured of control, less the control of a run without events."""
    return CONTROL.name if quantity is CHURN else quantity.name


def _observations(
    quantity: Quantity, runs: Sequence[MeasuredRun], model: Model
) -> list[tuple[MeasuredRun, Case, float]]:
    """The runs that determine a figure, with its values. `model`: has the figures before this one."""
    found = []
    for run in runs:
        value = run.value(_measured_name(quantity))
        if value is not None and quantity.fits(run):
            case = Case.of(run)
            calm = model.estimate(CONTROL, case) if quantity is CHURN else None
            found.append((run, case, value - (calm.middle if calm else 0.0)))
    return found
