"""The model of a run: known factors, the held-out size, what a plan says, and data that are refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from emulation.planning import measured_runs
from emulation.planning.checks import Check, held_out
from emulation.planning.forecast import Forecast, Wanted, _Forecast, forecast
from emulation.planning.measured_runs import MeasuredRun
from emulation.planning.model import fit_model
from emulation.planning.quantities import CHURN, CONTROL, FOREIGN, LEARNT, OWN, ROUND, sent_share
from emulation.planning.regression import exactly
from peers.errors import InputError
from peers.protocol.similar_copies import REFRESH
from tests.support.synthetic_measurements import BUDGET, KNOWN, case, measured, measurements

WANTED = Wanted(10_000, 4, 0.0, 10**10, 5)


def test_the_factors_of_all_figures_are_recovered() -> None:
    model = fit_model(measurements())
    assert model.sizes == (8, 12, 16, 24, 32) and model.degrees == (2, 4)
    for name, factors in KNOWN.items():
        assert model.fits[name].coefficients == pytest.approx(factors, rel=1e-6), name


def test_the_held_out_size_is_predicted_from_the_others() -> None:
    """The largest size is wrong by a factor of two. The prediction does not follow it."""
    runs = [_doubled(run) if run.devices == 32 else run for run in measurements(noise=0.01)]
    checks = [check for check in held_out(runs) if check.quantity is LEARNT]
    assert {check.run.devices for check in checks} == {32}
    assert all(check.error == pytest.approx(-0.5, abs=0.02) and not check.covered for check in checks)


def _doubled(run: MeasuredRun) -> MeasuredRun:
    figures = {**run.figures, LEARNT.name: 2 * run.figures[LEARNT.name]}
    return run.model_copy(update={"figures": figures})


def test_any_size_can_be_held_out() -> None:
    checks = held_out(measurements(noise=0.01), 16)
    assert {check.run.devices for check in checks} == {16}
    assert all(abs(check.error) < 0.2 for check in checks)


@pytest.mark.parametrize("name", [LEARNT.name, ROUND.name, "sent_bytes"])
def test_a_check_takes_no_outcome_of_the_held_out_run(name: str) -> None:
    """Rounds, times and bytes of the held-out run change no forecast."""

    def forecasts(factor: float) -> list[object]:
        runs = measurements(noise=0.01)
        for n, run in enumerate(runs):
            if run.devices == 16:
                figures = {**run.figures, name: factor * run.figures[name]}
                runs[n] = run.model_copy(update={"figures": figures})
        return [(check.quantity.name, check.run.degree, check.predicted) for check in held_out(runs, 16)]

    assert len(forecasts(1.0)) > 10 and forecasts(1.0) == forecasts(1.5)


def test_intervals_cover_a_held_out_size_in_a_simulation() -> None:
    checks = [check for seed in range(8) for check in held_out(measurements(noise=0.04, seed=seed, churn=0))]
    assert sum(check.covered for check in checks) / len(checks) > 0.9


def test_foreign_copies_are_sent_less_often_in_a_long_run() -> None:
    def share(rounds: float) -> float:
        return sent_share(replace(case(16), learning_rounds=rounds))

    assert share(10) == share(50) == 1.0  # tolerance 0.02: in each of the first 50 rounds
    assert share(500) == pytest.approx(0.1 * (1 + math.log(10)))
    assert share(math.inf) == 1 / REFRESH


@pytest.mark.parametrize("rounds", [40, 60, 300, 1000, 1500, 5000, 50_000])
def test_the_share_of_copies_is_the_mean_over_single_rounds(rounds: int) -> None:
    """Tolerance 0.02. The mean of the larger of two shares is more than the larger of two means."""
    simulated = sum(min(1.0, max(1 / (0.02 * t), 1 / REFRESH)) for t in range(1, rounds + 1)) / rounds
    assert sent_share(replace(case(16), learning_rounds=rounds)) == pytest.approx(simulated, rel=0.01)


# -- the plan ------------------------------------------------------------------------------------------
def plan(**changes: object) -> Forecast:
    return forecast(fit_model(measurements(noise=0.01)), replace(WANTED, **changes))  # type: ignore[arg-type]


def middle(found: Forecast, title: str) -> float:
    estimate = found.find(title).estimate
    assert estimate is not None and estimate.low <= estimate.middle <= estimate.high
    return estimate.middle


def test_a_plan_puts_the_figures_together() -> None:
    found = plan()
    rounds, seconds = middle(found, LEARNT.title), middle(found, ROUND.title)
    parts = sum(middle(found, quantity.title) for quantity in (OWN, FOREIGN, CONTROL))
    sent = middle(found, "sent by a device, in a round")
    assert sent == pytest.approx(parts) and middle(found, "time to 95 %") == pytest.approx(rounds * seconds)
    assert middle(found, "sent by all devices, in a round") == pytest.approx(10_000 * sent)
    assert middle(found, "sent by all devices, to 95 %") == pytest.approx(10_000 * sent * rounds)
    assert middle(found, OWN.title) == pytest.approx(1.05 * 4 * 18_432, rel=0.02)
    assert any("313 times" in note for note in found.notes) or any(
        "312 times" in note for note in found.notes
    )
    assert any("do not fit in d = 128" in note for note in found.notes)


def test_foreign_bytes_are_bounded_by_all_copies_in_every_round() -> None:
    """No copy costs more than an own block for all neighbours does."""
    planned = _Forecast(fit_model(measurements(noise=0.01)), WANTED)
    found = planned._foreign(exactly(10.0), exactly(1.0))
    assert (found.middle, found.high) == (9_999.0, 9_999.0)


def test_a_tight_budget_makes_everything_take_longer() -> None:
    free, tight = plan(), plan(budget_bytes=10_000_000)
    share = middle(tight, "share of the data that the budget lets pass") / 100
    assert middle(free, "share of the data that the budget lets pass") == 100.0 and share < 1
    assert middle(tight, LEARNT.title) == pytest.approx(middle(free, LEARNT.title) / share)
    assert middle(tight, "sent by a device, in a round") == 10_000_000


def test_nothing_is_learnt_if_control_takes_the_whole_budget() -> None:
    found = plan(budget_bytes=100_000)
    assert found.find(LEARNT.title).estimate is None and found.find("time to 95 %").estimate is None
    assert any("no data pass" in note for note in found.notes)


def test_nothing_is_learnt_if_newcomers_arrive_faster() -> None:
    """Little's law: arrivals a round x rounds of learning, as a share of the devices."""
    assert plan(churn=1e-6).find(LEARNT.title).estimate is not None
    found = plan(churn=50.0)
    assert found.find(LEARNT.title).estimate is None and any("Newcomers" in note for note in found.notes)


def tight_run(devices: int) -> MeasuredRun:
    """With half of the bytes, everything takes twice as long."""
    free = measured(devices)
    needed = sum(free.figures[quantity.name] for quantity in (OWN, FOREIGN))
    budget = round(needed / 2 + free.figures[CONTROL.name])
    figures = {**free.figures, "withheld": 3.0, LEARNT.name: 2 * free.figures[LEARNT.name]}
    return free.model_copy(update={"budget_bytes": budget, "figures": figures})


def of_budget(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.run.figures["withheld"]]


def test_a_run_under_a_budget_checks_the_rule_of_the_budget() -> None:
    runs = [*measurements(), tight_run(16)]
    (check,) = of_budget(held_out(runs))
    assert check.run is runs[-1] and check.error == pytest.approx(0.0, abs=0.02)
    assert of_budget(held_out(runs, 16)) == [check] and not of_budget(held_out(runs, 12))


def test_a_budget_is_checked_without_the_free_run_of_its_size() -> None:
    """The free runs of 16 devices are wrong by a factor of two. The forecast does not follow them."""
    runs = [_doubled(run) if run.devices == 16 else run for run in measurements()]
    (check,) = of_budget(held_out([*runs, tight_run(16)]))
    assert check.error == pytest.approx(0.0, abs=0.02)


def test_a_slower_radio_makes_rounds_longer() -> None:
    base = plan(devices=100)
    slow = plan(devices=100, rate_Bps=1e6, latency_s=0.1)
    assert middle(slow, ROUND.title) > 2 * middle(base, ROUND.title)


def test_a_degree_that_was_not_measured_is_named() -> None:
    assert any("degree 8 was not measured, only 2, 4" in note for note in plan(degree=8).notes)


# -- what is refused -----------------------------------------------------------------------------------
def test_too_few_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r"sizes \[8, 12, 16\]; allowed: runs of 4 sizes or more"):
        fit_model(measurements((8, 12, 16)))


def test_a_figure_that_is_not_determined_is_named() -> None:
    runs = [run for run in measurements() if run.clock == "real"]
    with pytest.raises(InputError, match="copies of foreign blocks"):
        fit_model(runs)


def test_churn_without_measured_churn_is_refused() -> None:
    model = fit_model(measurements(churn=0))
    assert CHURN.name not in model.fits
    with pytest.raises(InputError, match=r"--churn: 0.1; allowed: 0"):
        forecast(model, replace(WANTED, churn=0.1))


def test_runs_of_other_settings_are_refused(tmp_path: Path) -> None:
    other = measured(8).settings.model_copy(update={"rank": 4})
    path = write(tmp_path, [measured(8), measured(12).model_copy(update={"settings": other})])
    with pytest.raises(InputError, match="rank is 2 in one run and 4 in another"):
        measured_runs.read([path])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "has no measured runs"),
        ('[{"runs": 5}]', "has no measured runs"),
        ("[" * 100_000, "is no JSON"),
        ('[{"runs": [{"clock": "real"}]}]', "devices"),
    ],
)
def test_files_without_runs_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        measured_runs.read([path])
    with pytest.raises(InputError, match="cannot be read"):
        measured_runs.read([tmp_path / "none.json"])
    with pytest.raises(InputError, match="--fit: no file"):
        measured_runs.read([])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("degree", 3, "degree: 3: Input should be a multiple of 2"),
        ("degree", 0, "degree: 0: Input should be greater than or equal to 2"),
        ("budget_bytes", 10**400, "budget_bytes: .*should be less than or equal to 1000000000000000"),
        ("churn", 1e300, "churn: 1e.300: Input should be less than or equal to 1000000000000000"),
    ],
)
def test_values_that_no_run_has_are_refused(key: str, value: float, said: str, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text(json.dumps([{"runs": [measured(8).model_dump() | {key: value}]}]))
    with pytest.raises(InputError, match=said):
        measured_runs.read([path])


def test_bytes_of_blocks_are_scaled_to_those_of_the_links() -> None:
    figures = {"own_bytes": 60.0, "foreign_bytes": 40.0, "control_bytes": 5.0, "sent_bytes": 95.0}
    run = measured(8).model_copy(update={"figures": figures})
    assert [run.value(name) for name in ("own_bytes", "foreign_bytes", "cpu_s")] == [54.0, 36.0, None]
    assert run.model_copy(update={"figures": {"own_bytes": 60.0}}).value("own_bytes") == 60.0


def test_runs_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert measured_runs.read([write(tmp_path, measurements())]) == measurements()


def test_the_longest_run_of_a_configuration_counts(tmp_path: Path) -> None:
    """In virtual time, a shorter run of the same configuration is the beginning of the longer one."""
    long, short = measured(4, 4), measured(4, 4).model_copy(update={"rounds": 7})
    complete = measured(4, 6).model_copy(update={"rounds": 8})  # the same graph: all 3 neighbours
    ring = measured(4, 2)
    assert measured_runs.read([write(tmp_path, [short, ring, long, complete])]) == [long, ring]


def write(folder: Path, runs: list[MeasuredRun]) -> Path:
    path = folder / "measured.json"
    path.write_text(json.dumps([{"title": "", "runs": [run.model_dump() for run in runs]}]))
    return path


def test_the_budget_of_the_synthetic_runs_binds_nothing() -> None:
    assert all(run.figures["sent_bytes"] < BUDGET for run in measurements())


def test_the_shipped_measurements_determine_a_plan() -> None:
    found = forecast(fit_model(measured_runs.read(measured_runs.shipped())), WANTED)
    assert middle(found, LEARNT.title) > 1 and middle(found, OWN.title) > 0
