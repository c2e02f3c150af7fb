"""`unweft experiment wireless`: accuracy after a leave where C_t, tau_max or beta limit what devices send.

All arms of a seed resume the checkpoint of one run without limits. An arm is an allocator under one limit, so
that its figures show what the limit costs after the event. `binds` is the share of rounds in which a device
withheld something: an arm with `binds` near 0 says nothing about an allocator. `false verdicts` counts the
verdicts of devices that a live survivor has crashed: an arm with many of them measures membership too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from emulation.analysis.records import Record, RunRecords, load
from emulation.experiments import publication, runner, tables
from emulation.experiments.aggregate import adjusted, to_record
from emulation.experiments.arms import BEFORE, Arm
from emulation.experiments.catalogue import SMOKE, Scale, Setting, listed
from emulation.experiments.grid import Cell, check_cells
from emulation.experiments.request import Request
from emulation.experiments.seeds import PUBLISHED_LONG
from emulation.experiments.statistics import interval
from peers.errors import InputError
from peers.radio_config import FIFO

NAME = "wireless"
BLOCK_BYTES = 73_728  # a block of `tiny` at rank 8 in fp16
RATE_BPS = 1_000_000  # of every radio in the regimes of tau_max
SETTING = Setting(NAME, "a complete graph; the limits hold after the checkpoint")
PLANNING = ("equal-share", "random", "residual")
ALLOCATORS = (FIFO, *PLANNING)
FIGURES = ("retain", "half", "bytes", "binds", "false_verdicts")


@dataclass(frozen=True)
class Limit:
    """One limit. share: C_t divided by the bytes of the own block for all neighbours. changes: keys.

    allocators: those that observe the limit. The others are compared with the first one.
    """

    name: str
    share: float | None
    changes: Mapping[str, object] = field(default_factory=dict)
    allocators: tuple[str, ...] = ALLOCATORS

    def keys(self, scale: Scale) -> dict[str, object]:
        """The keys of the section `radio` at a scale."""
        budget = self.budget_bytes(scale)
        return {**({} if budget is None else {"radio.budget_bytes": budget}), **self.changes}

    def budget_bytes(self, scale: Scale) -> int | None:
        """C_t at a scale; None: no limit."""
        return None if self.share is None else round(self.share * (scale.devices - 1) * BLOCK_BYTES)

    def fits(self, scale: Scale) -> bool:
        """Whether the budget of this limit holds a matrix at a scale."""
        budget = self.budget_bytes(scale)
        return budget is None or budget >= LEAST_BYTES


def _tau(share: float) -> dict[str, object]:
    """A message of a link must be over in tau_max: the time of a share of a block at the radio's rate."""
    tau = share * BLOCK_BYTES / RATE_BPS
    return {"radio.rate_Bps": RATE_BPS, "radio.tau_max_s": round(tau, 4), "radio.outage_bytes": 1024}


# With fading, links differ in rate. beta makes the slow ones dear: at R = beta a byte costs two. With full
# interference most links carry less than a heartbeat needs, and live devices are taken for dead.
_FADING: dict[str, object] = {
    "radio.kind": "wireless",
    "radio.outage_bytes": 1024,
    "radio.wireless.interference": 0.001,
}
LIMITS = {
    limit.name: limit
    for limit in (
        *(Limit(f"budget-{round(100 * share)}", share) for share in (1.0, 0.5, 0.25, 0.125)),
        # `fifo` sends without a plan and does not observe tau_max
        *(Limit(f"tau-{round(100 * share)}", None, _tau(share), PLANNING) for share in (0.5, 0.25)),
        *(Limit(f"beta-{b}", 0.5, {**_FADING, "radio.beta_Bps": b}) for b in (0, 300_000, 1_000_000)),
    )
}
SMOKE_ARMS = ("budget-50/fifo", "budget-50/residual")
LEAST_BYTES = 40_000  # C_t that holds the largest group of a block of `tiny` in fp16, headers and control


def arms(scale: Scale) -> dict[str, Arm]:
    """Each limit with each allocator that observes it, by name."""
    made = (
        Arm(f"{limit.name}/{allocator}", limit.name, {**limit.keys(scale), "radio.allocator": allocator})
        for limit in LIMITS.values()
        for allocator in limit.allocators
    )
    return {arm.name: arm for arm in made}


class WirelessCell(Cell):
    """One run. The folder of an arm has no slash in its name."""

    @property
    def name(self) -> str:
        return f"{self.setting.name}/{self.arm.name.replace('/', '-')}/seed-{self.seed}"


def choose_arms(names: str, scale: Scale) -> tuple[str, ...]:
    """The arms of a list with commas: whole names, limits or allocators. Raises InputError.

    An empty list, or allocators alone, leave out the budgets that hold no matrix at this scale.
    """
    every = tuple(arms(scale))
    wanted, fitting = listed(names), {name for name, limit in LIMITS.items() if limit.fits(scale)}
    for name in wanted:
        if name not in {*every, *LIMITS, *ALLOCATORS}:
            allowed = ", ".join((*LIMITS, *ALLOCATORS))
            raise InputError(f"--arms: {name!r} is no arm; allowed: {allowed}, or a limit/allocator")
    if not wanted:
        return (
            SMOKE_ARMS if scale.name == SMOKE else tuple(n for n in every if _of(n, fitting, {*ALLOCATORS}))
        )
    limits, allocators = {*wanted} & {*LIMITS} or fitting, {*wanted} & {*ALLOCATORS} or {*ALLOCATORS}
    named = {*wanted} & {*every}
    broad = {*wanted} - named
    return tuple(n for n in every if n in named or (broad and _of(n, limits, allocators)))


def _of(name: str, limits: set[str], allocators: set[str]) -> bool:
    limit, _, allocator = name.partition("/")
    return limit in limits and allocator in allocators


def run(request: Request, console: Console, run_one: runner.RunCell | None = None) -> None:
    """Run the cells that OUT lacks, write OUT/rows.csv and OUT/results.json, and print the table."""
    cells = _cells(request, request.seeds)
    found = runner.run_cells(cells, request.out, console, run_one or run_and_measure, request.jobs)
    rows = [row_of(one) for one in found]
    summary = aggregate(rows)
    console.print(f"{request.scale.name}, {publication.header(found)}", highlight=False)
    console.print(table(summary))
    tables.write_results(request.out, rows, {"summary": summary})
    request.finish(NAME, found, "rows.csv, results.json", console)


def check(request: Request) -> None:
    """Raises InputError, before anything starts, for a scenario or a publication that is not possible."""
    request.check(PUBLISHED_LONG)
    check_cells(_cells(request, request.seeds[:1]))


def _cells(request: Request, seeds: Sequence[int]) -> list[WirelessCell]:
    known, setting = arms(request.scale), request.changed(SETTING)
    return [
        WirelessCell(setting, arm, seed, request.scale)
        for seed in seeds
        for arm in (BEFORE, *(known[name] for name in request.arms))
    ]


def run_and_measure(cell: Cell, folder: Path, console: Console) -> Record:
    """Run the scenario of a cell and measure the run after the event."""
    found = runner.run_and_measure(cell, folder, console)
    if cell.arm == BEFORE:
        return found
    run = load(folder / "run")
    return {**found, "binds": binds(run, cell), "false_verdicts": false_verdicts(run, cell)}


def binds(run: RunRecords, cell: Cell) -> float:
    """The share of the survivors' rounds after the event in which something was withheld."""
    return fmean(
        line["withheld"] > 0
        for device in cell.survivors
        for line in run.metrics[device]
        if line["round"] > cell.event_round
    )


def false_verdicts(run: RunRecords, cell: Cell) -> int:
    """The verdicts of survivors that another survivor has crashed. No survivor crashes in these runs."""
    return sum(
        event["event"] == "peer_gone" and event["kind"] == "crash" and event["peer"] in cell.survivors
        for device in cell.survivors
        for event in run.events[device]
    )


def row_of(found: Record) -> Record:
    """The figures of one run. half, retain: accuracy on survivors' facts at half of K and at K."""
    limit, _, allocator = found["arm"].partition("/")
    last = found["curve"][-1]
    middle = next(point for point in found["curve"] if 2 * point["k"] >= last["k"])
    return {
        **{"limit": limit, "allocator": allocator, "seed": found["seed"]},
        "revision": found.get("revision"),
        **{"retain": last["retain"], "half": middle["retain"]},
        **{"bytes": last["bytes"], "binds": found["binds"], "false_verdicts": found["false_verdicts"]},
    }


def aggregate(rows: Sequence[Record]) -> list[Record]:
    """One entry for each limit and allocator, with intervals over seeds.

    gain: paired, to the first allocator of the limit. Its p is adjusted over all lines (Holm).
    """
    by_cell = {(row["limit"], row["allocator"], row["seed"]): row for row in rows}
    found = []
    for limit, allocator in dict.fromkeys((row["limit"], row["allocator"]) for row in rows):
        own = [row for row in rows if (row["limit"], row["allocator"]) == (limit, allocator)]
        known = LIMITS[limit].allocators[0]
        pairs = [(row, by_cell.get((limit, known, row["seed"]))) for row in own if allocator != known]
        gains = [row["retain"] - other["retain"] for row, other in pairs if other]
        means = {name: to_record(interval([row[name] for row in own])) for name in FIGURES}
        found.append(
            {"limit": limit, "allocator": allocator, "seeds": len(own), **means}
            | {"gain": to_record(interval(gains))}
            | {"runs_with_false_verdicts": sum(row["false_verdicts"] > 0 for row in own)}
        )
    return adjusted(found, "gain")


def table(summary: Sequence[Record]) -> Table:
    """One row for each limit and allocator."""
    made = tables.table("accuracy on survivors' facts after a leave, under limits of the radio")
    for head in (
        "limit",
        "allocator",
        "at K/2",
        "at K",
        "gain at K",
        "p",
        "MB",
        "binds %",
        "false\nverdicts",
    ):
        made.add_column(head, justify="left" if head in ("limit", "allocator") else "right")
    for e in summary:
        mb, percent = (
            {"mean": e[name]["mean"] * factor} for name, factor in (("bytes", 1e-6), ("binds", 100))
        )
        cells = [*(tables.spread(e[name]) for name in ("half", "retain", "gain")), tables.p_of(e["gain"])]
        costs = [tables.number(mb, 2), tables.number(percent, 0), _verdicts(e)]
        made.add_row(e["limit"], e["allocator"], *cells, *costs)
    made.caption = (
        "budget-p: C_t is p % of the own blocks in fp16; tau-p: tau_max carries p % of a block on a link; "
        "beta-n: fading links, C_t is 50 %, beta is n bytes/s; gain: over fifo, under tau over equal-share; "
        "p: adjusted (Holm); MB: all survivors, after the event; binds: share of rounds in which a device "
        "withheld something; false verdicts: of devices that a live survivor has crashed, mean of a run, and "
        "the runs that have any"
    )
    return made


def _verdicts(entry: Record) -> str:
    return (
        f"{tables.number(entry['false_verdicts'], 1)} ({entry['runs_with_false_verdicts']}/{entry['seeds']})"
    )
