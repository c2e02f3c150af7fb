"""`unweft experiment pricing`: a price of the budget under churn (docs/pricing.md).

Devices leave, crash and join at random on fading links. All arms of a seed and setting have the same events,
links and limit C_t, except the arm `residual-75`: its C_t is the target of `priced`. An arm is compared with
`residual` of the same setting and seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from emulation.analysis.records import Record, RunRecords
from emulation.analysis.wasted_copies import copy_bytes, wasted_bytes
from emulation.experiments import publication, runner, tables
from emulation.experiments.aggregate import adjusted, paired_interval, to_record
from emulation.experiments.arms import Arm
from emulation.experiments.catalogue import SMOKE, Scale, Setting
from emulation.experiments.grid import Cell
from emulation.experiments.request import Request, arm_names
from emulation.experiments.statistics import interval
from emulation.scenario.preflight import check_against_model
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from peers.radio_config import PRICED, PricingConfig

NAME = "pricing"
RESIDUAL, STATIC_BETA = "residual", "static-beta"
BLOCK_BYTES = 73_728  # a block of `tiny` at rank 8 in fp16
SHARE = 0.5  # C_t divided by the bytes of the own block for all neighbours, at the start
BETA_BPS = 300_000
HORIZON = PricingConfig().horizon  # H of the wasted bytes, in all arms
SLOTS = 12
RATES = (0, 10, 20, 30)  # churn in events per 100 rounds
FLAKY = "flaky-20"  # all events are those of two devices that crash and come back


class Size(NamedTuple):
    """The size of a run. quiet: rounds without events at both ends. every: between evaluations."""

    devices: int
    rounds: int
    quiet: int
    every: int


SIZES = {
    "full": Size(6, 240, 20, 10),
    "medium": Size(6, 120, 10, 5),
    "compact": Size(5, 32, 4, 8),
    "small": Size(4, 40, 5, 5),
    SMOKE: Size(3, 10, 2, 2),
}
LINKS: Mapping[str, object] = {
    "adapter.rank": 8,
    "radio.kind": "wireless",
    "radio.outage_bytes": 1024,
    "radio.wireless": {"interference": 0.01},
    "radio.tau_max_s": 0.5,  # so that data arrive before the deadline
    "round.deadline_s": 1.0,  # rounds go on while a crash is not confirmed yet
}
SETTINGS = {
    s.name: s
    for s in (
        *(
            Setting(
                f"churn-{rate}", f"{rate / 100} events a round, of any device", {"churn.rate": rate / 100}
            )
            for rate in RATES
        ),
        Setting(FLAKY, "0.2 events a round, all of the last two devices: they crash and come back"),
    )
}
SMOKE_SETTINGS = ("churn-30", FLAKY)


def _arm(name: str, description: str, **radio: object) -> Arm:
    return Arm(name, description, {f"radio.{key}": value for key, value in radio.items()}, None, False)


ARMS = {
    arm.name: arm
    for arm in (
        _arm(RESIDUAL, "gain per byte", allocator=RESIDUAL),
        _arm("residual-75", "the same, with the target of `priced` as C_t", allocator=RESIDUAL),
        _arm(STATIC_BETA, "gain per cost, with a constant beta", allocator=RESIDUAL, beta_Bps=BETA_BPS),
        _arm("equal-share", "groups get equal shares", allocator="equal-share"),
        _arm(PRICED, "the price and the survival of owners", allocator=PRICED),
        _arm("price-only", "the price, every owner counts alike", allocator=PRICED, pricing={"horizon": 0}),
        _arm("survival-only", "no price", allocator=PRICED, pricing={"step": 0.0, "target": 1.0}),
    )
}
SMOKE_ARMS = (RESIDUAL, PRICED)
FIGURES = ("accuracy", "mean", "bytes", "wasted", "share", "spent", "price", "events")
COMPARED = ("accuracy", "mean", "bytes", "wasted")
CLAIMED = {  # with the unit of the table, a factor and the digits
    "accuracy": ("accuracy at the end", 1.0, 3),
    "mean": ("accuracy over the run", 1.0, 3),
    "wasted": ("wasted MB", 1e-6, 2),
}


class PricingCell(Cell):
    """One run. No arm branches from a checkpoint."""

    @property
    def before(self) -> None:
        return None

    @property
    def size(self) -> Size:
        return SIZES[self.scale.name]

    @property
    def devices(self) -> int:
        return self.size.devices

    @property
    def rounds(self) -> int:
        return self.size.rounds

    @property
    def slots(self) -> int:
        return SLOTS

    def scenario(self) -> Scenario:
        start, stop = self.size.quiet, self.rounds - self.size.quiet
        data = {**self.common(), "eval": {"every": self.size.every}}
        data["radio"] = {"budget_bytes": self.budget_bytes()}
        if self.setting.name == FLAKY:
            return self.checked(data, flaky_events(self.seed, self.devices, start, stop))
        kinds = ["leave", "crash", "join", "join"]  # as many arrivals as departures
        limits = {"least": max(2, self.devices - 2), "most": self.devices + 2}
        data["churn"] = {"kind": kinds, "start": start, "stop": stop, **limits}
        return self.checked(data)

    def budget_bytes(self) -> int:
        """C_t. That of `residual-75` is the target of `priced`."""
        share = PricingConfig().target if self.arm.name == "residual-75" else 1.0
        return round(share * SHARE * (self.devices - 1) * BLOCK_BYTES)


def flaky_events(seed: int, devices: int, start: int, stop: int, rate: float = 0.2) -> list[Record]:
    """Crashes and returns of the last two devices: Poisson events at `rate` a round, of either device.

    An event of a device that is there is a crash, else a return. Five rounds pass between two events of one
    device, since its crash has to be confirmed first.
    """
    draw, found, last = np.random.Generator(np.random.Philox(key=seed)), list[Record](), Counter[str]()
    there = {f"d{n}": True for n in (devices - 1, devices - 2)}
    for round_ in range(start, stop):
        for _ in range(int(draw.poisson(rate))):
            device = list(there)[int(draw.integers(len(there)))]
            if device in last and round_ - last[device] < 5:
                continue
            kind = "crash" if there[device] else "return"
            found.append({"round": round_, "kind": kind, "device": device})
            there[device], last[device] = not there[device], round_
    return found


def choose_arms(names: str, scale: Scale) -> tuple[str, ...]:
    """The arms of a list with commas, with `residual`. Raises InputError."""
    wanted = arm_names(names, ARMS, NAME) or (SMOKE_ARMS if scale.name == SMOKE else ARMS)
    return tuple(name for name in ARMS if name in {RESIDUAL, *wanted})


def check(request: Request) -> None:
    """Raises InputError, before anything starts, for a scenario or a publication that is not possible."""
    request.check()
    for cell in _cells(request, request.seeds[:1]):
        check_against_model(cell.scenario())


def _cells(request: Request, seeds: Sequence[int]) -> list[PricingCell]:
    names = SMOKE_SETTINGS if request.scale.name == SMOKE else SETTINGS
    settings = [replace(SETTINGS[n], changes={**LINKS, **SETTINGS[n].changes}) for n in names]
    return [
        PricingCell(request.changed(setting), ARMS[arm], seed, request.scale)
        for seed in seeds
        for setting in settings
        for arm in request.arms
    ]


def run(request: Request, console: Console, run_one: runner.RunCell | None = None) -> None:
    """Run the cells that OUT lacks, write OUT/rows.csv and OUT/results.json, and print the tables."""
    cells = _cells(request, request.seeds)
    found = runner.run_cells(cells, request.out, console, run_one or run_and_measure, request.jobs)
    rows = [{k: v for k, v in row.items() if k not in ("curve", "prefix_sha256")} for row in found]
    summary = aggregate(rows)
    console.print(f"{request.scale.name}, {publication.header(found)}", highlight=False)
    for setting in dict.fromkeys(row["setting"] for row in rows):
        entries = [entry for entry in summary if entry["setting"] == setting]
        console.print(accuracy_table(setting, entries))
        console.print(bytes_table(setting, entries))
    found_claims = claims(rows)
    if found_claims:
        console.print(claims_table(found_claims))
    tables.write_results(request.out, rows, {"summary": summary, "claims": found_claims})
    request.finish(NAME, found, "rows.csv, results.json", console)


def run_and_measure(cell: Cell, folder: Path, console: Console) -> Record:
    """Run the scenario of a cell and measure the run."""
    return runner.run_alone(cell, folder, ("round",), measure)


def measure(run: RunRecords) -> Record:
    """The measures of one run.

    accuracy, mean: of the present devices on their facts, at the end and over all evaluated rounds. bytes,
    wasted: of the copies that all devices sent, and those of blocks that were deleted within H rounds. share:
    wasted / bytes. spent: mean cost of a round of a device, divided by C_t. over: rounds that cost more than
    C_t. price: mean nu at the ends of the rounds. events: those that happened.
    """
    curve, lines = _curve(run), [line for lines in run.metrics.values() for line in lines]
    if not curve:
        raise InputError(f"{run.folder}: lacks evaluations; allowed: a run that finished")
    sent, wasted = copy_bytes(run), wasted_bytes(run, HORIZON)
    prices = [line["price"] for line in lines if "price" in line]
    return {
        "accuracy": curve[-1]["accuracy"],
        "mean": fmean(point["accuracy"] for point in curve),
        "bytes": sent,
        "wasted": wasted,
        "share": wasted / max(1, sent),
        "spent": fmean(line["spent_bytes"] / line["granted_bytes"] for line in lines),
        "over": sum(line["spent_bytes"] > line["granted_bytes"] for line in lines),
        "price": fmean(prices) if prices else None,
        "events": len(run.injected),
        "curve": curve,
    }


def _curve(run: RunRecords) -> list[Record]:
    """For each evaluated round: the mean accuracy of the present devices on the facts of all of them."""
    by_round: dict[int, dict[str, Mapping[str, float]]] = {}
    for line in run.tagged("round"):
        by_round.setdefault(int(line["round"]), {})[str(line["device"])] = line["accuracy"]
    return [
        {"round": round_, "devices": len(own), "accuracy": fmean(a[d] for a in own.values() for d in own)}
        for round_, own in sorted(by_round.items())
    ]


def aggregate(rows: Sequence[Record]) -> list[Record]:
    """One entry for each setting and arm, with intervals over seeds. `d_x`: paired, x less `residual`'s."""
    found = []
    for setting, arm in dict.fromkeys((row["setting"], row["arm"]) for row in rows):
        here = [row for row in rows if row["setting"] == setting]
        own, base = ([row for row in here if row["arm"] == name] for name in (arm, RESIDUAL))
        means = {n: to_record(interval([r[n] for r in own if r[n] is not None])) for n in FIGURES}
        gaps = {f"d_{n}": to_record(paired_interval(own, base, n)) for n in COMPARED if arm != RESIDUAL}
        over = sum(row["over"] for row in own)
        found.append({"setting": setting, "arm": arm, "seeds": len(own), "over": over, **means, **gaps})
    return found


def claims(rows: Sequence[Record]) -> list[Record]:
    """`priced` less each other arm, as a seed's mean over the settings. p is adjusted over all (Holm)."""
    by_arm = {
        arm: [row for row in rows if row["arm"] == arm] for arm in dict.fromkeys(r["arm"] for r in rows)
    }
    own = by_arm.pop(PRICED, [])
    found = [
        {"figure": figure, "arm": arm, "difference": to_record(paired_interval(own, other, figure))}
        for figure in CLAIMED
        for arm, other in by_arm.items()
    ]
    return adjusted([claim for claim in found if claim["difference"] is not None], "difference")


def claims_table(found: Sequence[Record]) -> Table:
    """One row for each claim of `claims`."""
    made = tables.table("all settings: priced less another arm")
    for head in ("figure", "arm", "difference", "p"):
        made.add_column(head, justify="right" if head in ("difference", "p") else "left", no_wrap=True)
    for claim in found:
        name, factor, digits = CLAIMED[claim["figure"]]
        difference = tables.spread(_scaled(claim["difference"], factor), " ", digits)
        made.add_row(name, claim["arm"], difference, tables.p_text(claim["difference"]["p"]))
    made.caption = (
        "mean over the settings and seeds; \\[low, high]: 95 % t interval over the seeds' means; p: adjusted "
        "over all lines (Holm)"
    )
    return made


def accuracy_table(setting: str, entries: Sequence[Record]) -> Table:
    """The accuracies of a setting, one row for each arm."""
    made = tables.table(f"{setting}: {SETTINGS[setting].description}")
    for head in ("arm", "at the end", "− residual", "over the run", "− residual"):
        made.add_column(head, justify="left" if head == "arm" else "right", no_wrap=True)
    for e in entries:
        made.add_row(
            e["arm"], *(tables.spread(e.get(n)) for n in ("accuracy", "d_accuracy", "mean", "d_mean"))
        )
    made.caption = "accuracy of the present devices on their facts; over the run: mean of all evaluations"
    return made


def bytes_table(setting: str, entries: Sequence[Record]) -> Table:
    """The bytes of a setting, one row for each arm."""
    made = tables.table(f"{setting}: bytes")
    for head in ("arm", "MB", "wasted MB", "− residual", "wasted %", "C_t %", "nu", "over"):
        made.add_column(head, justify="left" if head == "arm" else "right", no_wrap=True)
    for e in entries:
        mb = [tables.number(_scaled(e.get(n), 1e-6), 2) for n in ("bytes", "wasted", "d_wasted")]
        percent = [tables.number(_scaled(e[n], 100), 1) for n in ("share", "spent")]
        made.add_row(e["arm"], *mb, *percent, tables.number(e["price"], 2), str(e["over"]))
    made.caption = (
        f"MB: copies sent by all devices; wasted: those of blocks that were deleted within {HORIZON} rounds; "
        "C_t %: mean cost of a round; nu: mean price; over: rounds of a device that cost more than C_t"
    )
    return made


def _scaled(found: Record | None, factor: float) -> Record | None:
    return None if found is None else {k: found[k] and found[k] * factor for k in ("mean", "low", "high")}
