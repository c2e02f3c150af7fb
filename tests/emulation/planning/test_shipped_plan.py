"""The model that is fitted to the shipped measurements."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from emulation.planning import measured_runs
from emulation.planning.checks import held_out
from emulation.planning.forecast import Wanted, forecast
from emulation.planning.model import Model, fit_model
from emulation.planning.quantities import CONTROL, FOREIGN, LEARNT, OWN
from emulation.planning.regression import Estimate

WANTED = Wanted(20, 4, 0.0, 4_000_000, 5)


@cache
def model() -> Model:
    return fit_model(measured_runs.read(measured_runs.shipped()))


def control(local_steps: int) -> Estimate:
    estimate = forecast(model(), replace(WANTED, local_steps=local_steps)).find(CONTROL.title).estimate
    assert estimate is not None
    return estimate


def test_each_configuration_is_shipped_once() -> None:
    """4, 6 and 8 devices of degree 4 are in both files."""
    runs = measured_runs.read(measured_runs.shipped())
    made = [(run.devices, run.degree, run.churn, run.budget_bytes) for run in runs]
    assert len(made) == len({*made}) == 24 and (8, 4, 0.0, 4_000_000) in made


def test_no_cost_is_negative() -> None:
    costs = [fit for fit in model().fits.values() if not fit.logarithmic]
    assert costs and all((fit.coefficients >= 0).all() for fit in costs)


def test_control_does_not_fall_when_local_steps_rise() -> None:
    few, many, most = (control(steps).middle for steps in (5, 100, 10_000))
    assert 0 < few <= many <= most


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"local_steps": 6}, "those of runs with 5 local steps, also with 6"),
        ({"rate_Bps": 1e6}, "--rate: 1e+06 B/s was not measured. All runs have 5e+07 B/s."),
        ({"latency_s": 0.1}, "--latency: 0.1 s was not measured. All runs have 0.005 s."),
    ],
)
def test_settings_that_were_not_measured_are_named(changes: dict[str, float], said: str) -> None:
    assert not any(said in note for note in forecast(model(), WANTED).notes)
    assert any(said in note for note in forecast(model(), replace(WANTED, **changes)).notes)  # type: ignore[arg-type]


def test_the_largest_size_that_the_others_determine_is_held_out() -> None:
    """10 devices did not reach 95 %, so the rounds are checked at 8."""
    checks = held_out(measured_runs.read(measured_runs.shipped()))
    free = [check for check in checks if not check.run.churn and check.run.budget_bytes == 4_000_000]
    largest = {check.quantity.name: check.run.devices for check in free}
    assert (largest[OWN.name], largest[FOREIGN.name], largest[LEARNT.name]) == (10, 10, 8)


def test_forecasts_of_held_out_sizes_are_covered() -> None:
    """docs/plan.md has these checks."""
    checks = held_out(measured_runs.read(measured_runs.shipped()))
    assert len(checks) >= 10 and all(check.covered for check in checks)
