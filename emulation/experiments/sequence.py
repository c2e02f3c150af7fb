"""`unweft experiment sequence`: the paper's sequence of leaves and joins, with each arm through all of it.

Of 1000 rounds: d0 leaves at 200, d8 joins at 300, d1 leaves at 500, d9 joins at 700 (method 10). Smaller
scales keep the shape. The correction of the first leave is still under way when d8 joins.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from coordinator_free.identifiers import BlockKey
from emulation.analysis.link_totals import sent_by_round
from emulation.analysis.records import Record, RunRecords
from emulation.experiments import plot, publication, runner, tables
from emulation.experiments.aggregate import to_record
from emulation.experiments.arms import ARMS, UNIFORM
from emulation.experiments.catalogue import DEFAULT, SMOKE
from emulation.experiments.grid import Cell, Leave, check_cells
from emulation.experiments.request import Request, arm_names
from emulation.experiments.seeds import PUBLISHED_LONG
from emulation.experiments.statistics import interval
from emulation.report.plots import png
from emulation.scenario.schema import Scenario
from peers.errors import InputError

NAME = "sequence"
DEVICES = 8  # d0 … d7
EVENTS = ((0.2, "leave", "d0"), (0.3, "join", "d8"), (0.5, "leave", "d1"), (0.7, "join", "d9"))
CORRECTION = 0.12  # of all rounds: longer than the time between the first two events
ROUNDS = {"full": 1000, "medium": 200, "compact": 60, "small": 60, SMOKE: 20}
EVERY = {"full": 20, "medium": 4, "compact": 3, "small": 3, SMOKE: 1}  # rounds between two evaluations
CHOICES = tuple(n for n, arm in ARMS.items() if arm.event and not arm.derived)
USUAL = (UNIFORM, "dominant", "proportional", "naive")
COSTS = ("sent_bytes", "steps", "cpu_s", "kept", "stored_bytes")
FIGURES = ("retain", "forget", "test", "loss", "ri_mean", "ri_end", *COSTS)
PANELS = (
    ("loss", "loss on the data of the present devices"),
    ("retain", "accuracy on these data"),
    ("forget", "accuracy on the data of those that left"),
)


class SequenceCell(Cell):
    """One run of the whole sequence with one arm. No arm branches from a checkpoint."""

    @property
    def before(self) -> None:
        return None

    @property
    def rounds(self) -> int:
        return ROUNDS[self.scale.name]

    @property
    def devices(self) -> int:
        return DEVICES

    @property
    def slots(self) -> int:
        return DEVICES + sum(kind == "join" for _, kind, _ in EVENTS)

    @property
    def leaves(self) -> tuple[Leave, ...]:
        present, found = [f"d{n}" for n in range(DEVICES)], []
        for share, kind, device in EVENTS:
            if kind == "join":
                present.append(device)
            else:
                present.remove(device)
                found.append(Leave(round(share * self.rounds), device, tuple(present)))
        return tuple(found)

    def scenario(self) -> Scenario:
        rounds = self.rounds
        data = self.common()
        data["correction"] = {"rounds": round(CORRECTION * rounds), "period": self.scale.period}
        data["eval"] = {"every": EVERY[self.scale.name]}
        events = [
            {"round": round(share * rounds), "kind": self._kind(kind), "device": device}
            for share, kind, device in EVENTS
        ]
        return self.checked(data, events)

    def _kind(self, kind: str) -> str:
        """A leave becomes the event of the arm: `naive` retires."""
        return self.arm.event or kind if kind == "leave" else kind


def choose_arms(names: str) -> tuple[str, ...]:
    """The arms of a list with commas, with `uniform`. An empty list: USUAL. Raises InputError."""
    wanted = arm_names(names, CHOICES, NAME)
    return tuple(dict.fromkeys((UNIFORM, *(wanted or USUAL))))


def check(request: Request) -> None:
    """Raises InputError, before anything starts, for a scenario or a publication that is not possible."""
    request.check(PUBLISHED_LONG)
    check_cells(_cells(request, request.seeds[:1]))


def _cells(request: Request, seeds: Sequence[int]) -> list[SequenceCell]:
    setting = request.changed(DEFAULT)
    return [SequenceCell(setting, ARMS[name], seed, request.scale) for seed in seeds for name in request.arms]


def run(request: Request, console: Console, run_one: runner.RunCell | None = None) -> None:
    """Run the cells that OUT lacks, print the table, and write OUT/rows.csv, results.json and curves.png."""
    cells = _cells(request, request.seeds)
    measured = runner.run_cells(cells, request.out, console, run_one or run_and_measure, request.jobs)
    rows = with_ri(measured)
    summary = aggregate(measured, rows)
    console.print(f"{request.scale.name}, {publication.header(measured)}", highlight=False)
    console.print(accuracy_table(summary, ROUNDS[request.scale.name]))
    console.print(costs_table(summary))
    tables.write_results(request.out, rows, {"summary": summary})
    write_curves(rows, request.out / "curves.png")
    request.finish(NAME, measured, "rows.csv, results.json, curves.png", console)


def run_and_measure(cell: Cell, folder: Path, console: Console) -> Record:
    """Run the scenario of a cell and measure the run. Steps and bytes are with those of an unlearning."""
    found = runner.run_alone(cell, folder, ("round", "end"), measure)
    found["sent_bytes"] += found.pop("unlearning_bytes", 0)
    found["steps"] += found.pop("leaver_steps", 0)
    return {"stored_bytes": 0, **found}


def measure(run: RunRecords) -> Record:
    """curve: by evaluated round. test: accuracy on the other wording, at the end.

    sent_bytes, steps, cpu_s: of all devices. kept: the largest number of blocks of those that left on a
    device, in its last round. Raises InputError without evaluations.
    """
    by_round: dict[int, list[Record]] = {}
    for line in run.tagged("round"):
        by_round.setdefault(int(line["round"]), []).append(line)
    if not by_round:
        raise InputError(f"{run.folder}: lacks evaluations; allowed: a run that finished")
    left = {str(e.device): e.round for e in run.scenario.events if e.kind in ("leave", "retire")}
    present = [lines for device, lines in run.metrics.items() if lines and device not in left]
    held = ([BlockKey.parse(name).device for name in lines[-1]["norms"]] for lines in present)
    return {
        "curve": [_point(r, lines, left) for r, lines in sorted(by_round.items())],
        "test": _test(run, left),
        "sent_bytes": sum(n for lines in run.metrics.values() for n in sent_by_round(lines).values()),
        **{n: sum(line[n] for lines in run.metrics.values() for line in lines) for n in ("steps", "cpu_s")},
        "kept": max((sum(device in left for device in devices) for devices in held), default=0),
    }


def _test(run: RunRecords, left: Collection[str]) -> float | None:
    """The mean accuracy of the present devices on the other wording of their data; None if there is none."""
    lines = [line.get("other_wording", {}) for line in run.tagged("end") if line["device"] not in left]
    known = [value for line in lines for shard, value in line.items() if shard not in left]
    return fmean(known) if known else None


def _point(round_: int, lines: Sequence[Record], left: Mapping[str, int]) -> Record:
    """Means over the present devices. loss, retain: on their data. forget: on the data of those that left."""
    gone = [device for device, at in left.items() if at < round_]
    present = [str(line["device"]) for line in lines if line["device"] not in gone]
    own = [line for line in lines if line["device"] in present]
    losses = [line["loss"][d] for line in own for d in present if line["loss"].get(d) is not None]
    return {
        "round": round_,
        "devices": len(present),
        "loss": fmean(losses),
        "retain": fmean(line["accuracy"][d] for line in own for d in present),
        "forget": fmean(line["accuracy"][d] for line in own for d in gone) if gone else None,
    }


def with_ri(measured: Sequence[Record]) -> list[Record]:
    """A row for each arm, seed and evaluated round, with RI = 100 (L_uniform - L) / L_uniform."""
    losses = {(m["arm"], m["seed"], p["round"]): p["loss"] for m in measured for p in m["curve"]}
    rows = []
    for one in measured:
        for point in one["curve"]:
            base = losses.get((UNIFORM, one["seed"], point["round"]))
            ri = None if not base else 100 * (base - point["loss"]) / base
            rows.append({"arm": one["arm"], "seed": one["seed"], **point, "ri": ri})
    return rows


def aggregate(measured: Sequence[Record], rows: Sequence[Record]) -> list[Record]:
    """One entry for each arm, with means over seeds and intervals.

    retain, forget, loss, ri_end: at the last evaluated round. ri_mean: over the rounds after the first event.
    """
    found = []
    for arm in dict.fromkeys(m["arm"] for m in measured):
        ends = [_end(one, rows) for one in measured if one["arm"] == arm]
        means = {n: to_record(interval([end[n] for end in ends if end[n] is not None])) for n in FIGURES}
        found.append({"arm": arm, "seeds": len(ends), **means})
    return found


def _end(one: Record, rows: Sequence[Record]) -> Record:
    """The figures of one run."""
    own = [row for row in rows if (row["arm"], row["seed"]) == (one["arm"], one["seed"])]
    after = [row["ri"] for row in own if row["forget"] is not None and row["ri"] is not None]
    ri = {"ri_end": own[-1]["ri"], "ri_mean": fmean(after) if after else None}
    return {**own[-1], **ri, **{name: one[name] for name in ("test", *COSTS)}}


def accuracy_table(summary: Sequence[Record], rounds: int) -> Table:
    """One row for each arm."""
    made = tables.table(f"leave d0, join d8, leave d1, join d9 in {rounds} rounds")
    for head in ("arm", "retain", "forget", "test", "loss"):
        made.add_column(head, justify="left" if head == "arm" else "right", no_wrap=head == "arm")
    for e in summary:
        made.add_row(e["arm"], *(tables.spread(e[name]) for name in ("retain", "forget", "test", "loss")))
    made.caption = (
        "retain, test (the other wording), loss: on the data of the present devices at the end; forget: "
        "accuracy on the data of d0 and d1 at the end"
    )
    return made


def costs_table(summary: Sequence[Record]) -> Table:
    """One row for each arm: RI beside the costs."""
    made = tables.table("relative improvement and costs")
    for head in ("arm", "RI % (mean)", "RI % (end)", "steps", "CPU s", "MB", "kept", "stored MB"):
        made.add_column(head, justify="left" if head == "arm" else "right", no_wrap=head == "arm")
    for e in summary:
        ri = [tables.spread(e[name], digits=1) for name in ("ri_mean", "ri_end")]
        costs = [tables.number(e["steps"], 0), tables.number(e["cpu_s"], 1)]
        kept = [tables.number(e["kept"], 0), tables.mb(e["stored_bytes"])]
        made.add_row(e["arm"], *ri, *costs, tables.mb(e["sent_bytes"]), *kept)
    made.caption = (
        "RI (mean): over the rounds after the first event; steps, CPU s, MB: of all devices; kept: blocks of "
        "those that left, on a device; stored: by one device for a baseline alone, at most"
    )
    return made


def write_curves(rows: Sequence[Record], path: Path) -> None:
    """Write a PNG with loss, retain and forget by round: means over seeds with intervals, one line an arm."""
    figure = Figure(figsize=(15, 4), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    for panel, (name, title) in zip(panels, PANELS, strict=True):
        for number, arm in enumerate(arms):
            curves: dict[int, list[tuple[int, float]]] = {}
            for row in rows:
                if row["arm"] == arm and row[name] is not None:
                    curves.setdefault(row["seed"], []).append((row["round"], row[name]))
            plot.draw_arm(panel, arm, number, list(curves.values()))
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("round")
        panel.set_ylabel(f"{name} (mean over seeds, 95 % interval)")
        panel.grid(alpha=0.25)
    panels[0].legend(fontsize=7)
    png(figure, path)
