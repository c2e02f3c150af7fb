"""`unweft experiment pricing`: scenarios, measures, output."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from emulation.analysis.records import RunRecords
from emulation.experiments import pricing
from emulation.experiments.catalogue import SCALES
from emulation.experiments.grid import Cell
from emulation.experiments.pricing import ARMS, FLAKY, SETTINGS, SIZES, PricingCell
from emulation.experiments.request import Request
from emulation.scenario.loading import dump, load
from peers.errors import InputError
from peers.radio_config import PricingConfig

SMOKE = SCALES["smoke"]


def cell(setting: str = "churn-30", arm: str = "priced", scale: str = "smoke", seed: int = 0) -> PricingCell:
    of = SETTINGS[setting]
    changes = {**pricing.LINKS, **of.changes}
    return PricingCell(replace(of, changes=changes), ARMS[arm], seed, SCALES[scale])


@pytest.mark.parametrize("scale", SIZES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_scenario_is_valid(setting: str, scale: str, tmp_path: Path) -> None:
    (tmp_path / "cell.toml").write_text(dump(cell(setting, "priced", scale, 100).scenario()))
    found = load(tmp_path / "cell.toml")
    assert (found.radio.kind, found.radio.allocator) == ("wireless", "priced")
    size = SIZES[scale]
    assert all(size.quiet <= e.round <= size.rounds - size.quiet for e in found.events)
    assert bool(found.events) == (setting != "churn-0") or scale == "smoke"


def test_the_churn_has_the_rate_of_its_setting() -> None:
    rounds = SIZES["full"].rounds - 2 * SIZES["full"].quiet
    for rate in (10, 20, 30):
        counts = [len(cell(f"churn-{rate}", scale="full", seed=s).scenario().events) for s in range(20)]
        # an event that is not possible is left out: as many devices as allowed are there, or as few
        assert 0.6 * rate / 100 < sum(counts) / 20 / rounds < 1.1 * rate / 100


def test_all_arms_of_a_seed_have_the_same_events_and_the_same_limit_but_one() -> None:
    found = {name: cell(arm=name, scale="compact", seed=3).scenario() for name in ARMS}
    assert len({tuple(scenario.events) for scenario in found.values()}) == 1
    budgets = {name: scenario.radio.budget_bytes for name, scenario in found.items()}
    target = budgets.pop("residual-75")
    assert set(budgets.values()) == {147_456}
    assert target == PricingConfig().target * 147_456
    assert found["price-only"].radio.pricing.horizon == 0
    assert found["survival-only"].radio.pricing.step == 0


def test_flaky_devices_crash_and_return_in_turn() -> None:
    for seed in range(20):
        events = pricing.flaky_events(seed, 5, 4, 100)
        assert events == pricing.flaky_events(seed, 5, 4, 100)
        assert {e["device"] for e in events} == {"d3", "d4"}
        for device in ("d3", "d4"):
            own = [e for e in events if e["device"] == device]
            assert [e["kind"] for e in own] == (["crash", "return"] * len(own))[: len(own)]
            assert all(b["round"] - a["round"] >= 5 for a, b in pairwise(own))


def test_arms_are_chosen_by_name_and_include_residual() -> None:
    assert pricing.choose_arms("", SCALES["compact"]) == tuple(ARMS)
    assert pricing.choose_arms("", SMOKE) == pricing.SMOKE_ARMS
    assert pricing.choose_arms("priced", SCALES["compact"]) == ("residual", "priced")
    with pytest.raises(InputError, match="--arms: 'oracle' is no arm of pricing; allowed: residual"):
        pricing.choose_arms("oracle", SMOKE)


def records(price: float | None) -> RunRecords:
    """Two devices. d1 is gone at the second evaluation, and its block is deleted in round 12."""
    prices = {} if price is None else {"price": price}
    lines = [
        {"round": r, "granted_bytes": 100, "spent_bytes": 50 + r, "block_bytes": {"d1@0": 40}, **prices}
        for r in (1, 5, 60)
    ]
    evaluations = [
        {"device": d, "round": r, "tag": "round", "accuracy": {"d0": 0.5, "d1": 0.25, "d2": 0.0}}
        for d, r in (("d0", 1), ("d1", 1), ("d0", 11))
    ]
    deleted = {"event": "deleted", "round": 12, "peer": "d1", "incarnation": 0}
    run = {"events": [{"round": 11, "kind": "leave", "device": "d1", "t_s": 1.0, "life": 0}]}
    scenario = cell().scenario()
    return RunRecords(Path("run"), scenario, ["d0"], {"d0": lines}, {"d0": [deleted]}, evaluations, {}, run)


def test_measures_of_a_run() -> None:
    found = pricing.measure(records(0.5))
    assert [(p["round"], p["devices"], p["accuracy"]) for p in found["curve"]] == [
        (1, 2, 0.375),  # both devices on the facts of both
        (11, 1, 0.5),
    ]
    assert (found["accuracy"], found["mean"]) == (0.5, 0.4375)
    assert (found["bytes"], found["wasted"]) == (120, 80)  # rounds 5 and 60; round 1 was long before
    assert found["share"] == pytest.approx(2 / 3)
    assert (found["over"], found["price"], found["events"]) == (1, 0.5, 1)
    assert found["spent"] == pytest.approx((0.51 + 0.55 + 1.1) / 3)
    assert pricing.measure(records(None))["price"] is None


def test_the_experiment_compares_with_residual(tmp_path: Path) -> None:
    def run_one(cell: Cell, folder: Path, console: Console) -> dict[str, Any]:
        key = {"setting": cell.setting.name, "arm": cell.arm.name, "seed": cell.seed, "prefix_sha256": None}
        found = pricing.measure(records(0.5 if cell.arm.name == "priced" else None))
        return {**key, **found, "accuracy": 0.5 + 0.1 * (cell.arm.name == "priced") + 0.01 * cell.seed}

    console = Console(record=True, width=120)
    pricing.run(Request(SMOKE, pricing.SMOKE_ARMS, (0, 1), tmp_path), console, run_one)
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert len(rows) == 2 * 2 * 2 and {r["over"] for r in rows} == {"1"}
    summary = json.loads((tmp_path / "results.json").read_text())["summary"]
    assert [(e["setting"], e["arm"]) for e in summary] == [
        (s, a) for s in ("churn-30", FLAKY) for a in ("residual", "priced")
    ]
    assert summary[1]["d_accuracy"]["mean"] == pytest.approx(0.1) and "d_accuracy" not in summary[0]
    assert summary[1]["over"] == 2
    text = console.export_text()
    assert "wasted MB" in text and "0.2 events a round, all of the last two devices" in text


def test_claims_are_of_priced_over_all_settings_with_adjusted_p() -> None:
    """By hand: the differences of the seeds are 0.1, 0.2 and 0.3, as means of two settings each."""
    rows = [
        {"setting": s, "arm": arm, "seed": seed, "accuracy": value, "mean": value, "wasted": 1e6 * value}
        for seed in (1, 2, 3)
        for s, more in (("churn-0", 0.1 * seed - 0.05), (FLAKY, 0.1 * seed + 0.05))
        for arm, value in (("residual", 0.25), ("residual-75", 0.25 + more), ("priced", 0.25 + more))
    ]
    found = pricing.claims(rows)
    assert [(c["figure"], c["arm"]) for c in found] == [
        (figure, arm) for figure in ("accuracy", "mean", "wasted") for arm in ("residual", "residual-75")
    ]
    gain = found[0]["difference"]
    assert (gain["mean"], gain["n"]) == (pytest.approx(0.2), 3)
    assert gain["high"] - gain["mean"] == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)  # t, 2 degrees
    assert gain["p"] == pytest.approx(6 * 0.0742, rel=1e-2)  # t = 3.46, of six claims
    assert found[1]["difference"]["mean"] == 0 and found[1]["difference"]["p"] == 1
    console = Console(record=True, width=120)
    console.print(pricing.claims_table(found))
    assert "0.200 [-0.048, 0.448]" in console.export_text()
    assert pricing.claims([row for row in rows if row["arm"] != "priced"]) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_has_what_is_measured(tmp_path: Path) -> None:
    """Runs devices, because the measures need lines that only a run writes. d2 leaves after round 3."""
    of = cell("churn-30", seed=2)
    assert ("leave", "d2") in [(e.kind, e.device) for e in of.scenario().events]
    found = pricing.run_and_measure(of, tmp_path, Console(quiet=True))
    assert found["events"] == 3 and found["over"] == 0
    assert 0 < found["wasted"] < found["bytes"]
    assert 0 < found["spent"] <= 1 and found["price"] > 0
    assert 0 <= found["accuracy"] <= 1
