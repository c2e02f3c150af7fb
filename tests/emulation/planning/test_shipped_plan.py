"""The model that is fitted to the shipped measurements."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from emulation.planning import measured_runs
from emulation.planning.checks import held_out
from emulation.planning.forecast import Wanted, forecast
from emulation.planning.model import Model, fit_model
from emulation.planning.quantities import CONTROL, FOREIGN, OWN
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
    """Two rings of 4 devices were measured. The first 28 rounds of the longer one are the shorter one."""
    runs = measured_runs.read(measured_runs.shipped())
    assert [run.rounds for run in runs if (run.devices, run.degree) == (4, 2)] == [47]


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
    """Without 6 devices, only the ring of 4 has foreign copies, and one size does not determine a factor."""
    runs = measured_runs.read(measured_runs.shipped())
    assert {check.quantity.name: check.run.devices for check in held_out(runs)}[FOREIGN.name] == 5
    assert {check.quantity.name for check in held_out(runs, 6)}.isdisjoint({FOREIGN.name, CONTROL.name})
    assert {check.run.devices for check in held_out(runs) if check.quantity is OWN} == {6}
