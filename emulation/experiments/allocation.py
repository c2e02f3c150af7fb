"""`unweft experiment allocation`: compares allocators at equal bytes (method 8).

All devices train together and no device leaves. The budget of a round is a tenth of the bytes that send all
blocks to all neighbours in fp16. Without a diagnosis all groups have equal weights, so that `gradient-only`
and `fisher-only` equal `residual` without its share for waiting parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from emulation.analysis.link_totals import sent_by_round
from emulation.analysis.records import Record, RunRecords
from emulation.experiments import publication, runner, tables
from emulation.experiments.aggregate import adjusted, to_record
from emulation.experiments.arms import Arm
from emulation.experiments.catalogue import Scale, Setting
from emulation.experiments.grid import Cell, check_cells
from emulation.experiments.request import Request, arm_names
from emulation.experiments.statistics import interval
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from peers.radio_config import FIFO

NAME = "allocation"
SETTING = Setting("tight", "a tenth of the bytes")
SHARE = 0.1  # of the bytes of a round that sends all blocks to all neighbours in fp16
BEST_CODEC = "fifo-int4"  # of the arms without an allocator, with development seeds
TARGET = 0.8  # mean accuracy of all devices on all facts
ALLOCATORS = ("residual", "equal-share", "round-robin", "random", "gradient-only", "fisher-only")
FIFOS = {FIFO: "fp16", "fifo-int8": "int8", "fifo-int4": "int4"}
ARMS = {
    **{
        n: Arm(n, f"first in, first out, in {c}", {"radio.allocator": FIFO, "radio.codec": c}, None, False)
        for n, c in FIFOS.items()
    },
    **{n: Arm(n, "chooses among 16, 8 and 4 bits", {"radio.allocator": n}, None, False) for n in ALLOCATORS},
}
DEFAULT = (*FIFOS, *ALLOCATORS[:4])
FIGURES = ("accuracy", "consensus", "rounds", "bytes", "sent_bytes", "fp16", "int8", "int4")


class AllocationCell(Cell):
    """One run. All devices train together, and none leaves."""

    @property
    def devices(self) -> int:
        return self.scale.devices

    @property
    def rounds(self) -> int:
        return self.scale.learn + self.scale.correct

    def scenario(self) -> Scenario:
        radio = {"budget_bytes": budget_bytes(self.scale)}
        return self.checked({**self.common(), "eval": {"every": self.scale.every}, "radio": radio})


def budget_bytes(scale: Scale) -> int:
    """C_t for the model `tiny` at rank 8, whose three groups are 73,728 bytes in fp16."""
    return round(SHARE * scale.devices * (scale.devices - 1) * 73_728)


def choose_arms(names: str) -> tuple[str, ...]:
    """The arms of a list with commas. An empty list means all arms that differ. Raises InputError."""
    wanted = arm_names(names, ARMS)
    return tuple(name for name in ARMS if name in wanted) or DEFAULT


def check(request: Request) -> None:
    """Raises InputError, before anything starts, for a scenario or a publication that is not possible."""
    request.check()
    check_cells(_cells(request, request.seeds[:1]))


def _cells(request: Request, seeds: Sequence[int]) -> list[AllocationCell]:
    setting = request.changed(SETTING)
    return [
        AllocationCell(setting, ARMS[name], seed, request.scale) for seed in seeds for name in request.arms
    ]


def run(request: Request, console: Console, run_one: runner.RunCell | None = None) -> None:
    """Run the cells that OUT lacks, write OUT/rows.csv and OUT/results.json, and print the table."""
    rows = runner.run_cells(
        _cells(request, request.seeds), request.out, console, run_one or run_and_measure, request.jobs
    )
    summary = aggregate(rows)
    console.print(f"{request.scale.name}, {publication.header(rows)}", highlight=False)
    console.print(table(summary))
    tables.write_results(
        request.out, [{k: v for k, v in row.items() if k != "curve"} for row in rows], {"summary": summary}
    )
    request.finish(NAME, rows, "rows.csv, results.json", console)


def run_and_measure(cell: Cell, folder: Path, console: Console) -> Record:
    """Run the scenario of a cell and measure the run."""
    return runner.run_alone(cell, folder, ("round",), measure)


def measure(run: RunRecords) -> Record:
    """The measures of one run.

    accuracy, consensus: at the end. rounds, bytes of one device: until the target; None if it is not reached.
    sent_bytes: of one device in total. fp16, int8, int4: shares of the sent matrices.
    """
    curve = _curve(run)
    if not curve:
        raise InputError(f"{run.folder}: lacks evaluations; allowed: a run that finished")
    reached = next((point for point in curve if point["accuracy"] >= TARGET), None)
    sent = Counter[str]()
    for line in (line for lines in run.metrics.values() for line in lines):
        for codecs in line["sent"].values():
            sent.update(codecs)
    return {
        "accuracy": curve[-1]["accuracy"],
        "consensus": curve[-1]["consensus"],
        "rounds": None if reached is None else reached["round"] + 1,
        "bytes": None if reached is None else reached["bytes"],
        "sent_bytes": curve[-1]["bytes"],
        **{codec: sent[codec] / max(1, sent.total()) for codec in FIGURES[-3:]},
        "curve": curve,
    }


def _curve(run: RunRecords) -> list[Record]:
    """For each evaluated round: mean accuracy on all facts, consensus error, mean bytes of one device."""
    sent = [sent_by_round(run.metrics[d]) for d in run.devices]
    by_round: dict[int, list[float]] = {}
    for line in run.tagged("round"):
        by_round.setdefault(int(line["round"]), []).append(fmean(line["accuracy"].values()))
    return [
        {
            "round": round_,
            "accuracy": fmean(values),
            "consensus": run.consensus.get(round_),
            "bytes": fmean(sum(n for r, n in own.items() if r <= round_) for own in sent),
        }
        for round_, values in sorted(by_round.items())
    ]


def aggregate(rows: Sequence[Record]) -> list[Record]:
    """One entry for each arm: means over seeds with intervals.

    reached: seeds that reached the target. gain: accuracy less that of BEST_CODEC with the same seed. Its p
    is adjusted over the arms (Holm).
    """
    found, best = [], {row["seed"]: row["accuracy"] for row in rows if row["arm"] == BEST_CODEC}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        means = {name: to_record(interval([r[name] for r in own if r[name] is not None])) for name in FIGURES}
        reached = sum(row["rounds"] is not None for row in own)
        compared = [row for row in own if row["seed"] in best and arm != BEST_CODEC]
        gain = to_record(interval([row["accuracy"] - best[row["seed"]] for row in compared]))
        found.append({"arm": arm, "seeds": len(own), "reached": reached, **means, "gain": gain})
    return adjusted(found, "gain")


def table(summary: Sequence[Record]) -> Table:
    """One row for each arm."""
    heads = ("arm", "accuracy", "gain", "p", "consensus", "reached", "rounds", "MB", "bits")
    made = tables.table(f"allocators at equal bytes: {100 * SHARE:.0f} % of all blocks in fp16")
    for head in heads:
        made.add_column(
            head, justify="left" if head == "arm" else "right", no_wrap=head in ("arm", "p", "bits")
        )
    for e in summary:
        bits = "/".join(f"{100 * (e[codec] or {'mean': 0.0})['mean']:.0f}" for codec in FIGURES[-3:])
        of = (tables.spread(e[name]).replace(", ", ",\n") for name in ("accuracy", "gain", "consensus"))
        accuracy, gain, consensus = of
        cells_ = [accuracy, gain, tables.p_of(e["gain"]), consensus, f"{e['reached']}/{e['seeds']}"]
        made.add_row(e["arm"], *cells_, tables.number(e["rounds"], 0), tables.mb(e["sent_bytes"]), bits)
    made.caption = (
        f"accuracy: all devices on all facts, at the end; gain: over {BEST_CODEC}, paired; p: adjusted "
        f"(Holm); reached: seeds that reached {100 * TARGET:.0f} %; rounds: until then; "
        "MB: of a device in all; bits: % of the sent matrices with 16, 8 and 4"
    )
    return made
