"""`unweft experiment sequence`: the paper's sequence of leaves and joins, with each arm through all of it.

Of 1000 rounds: d0 leaves at 200, d8 joins at 300, d1 leaves at 500, d9 joins at 700 (method 10). Smaller
scales keep the shape. The correction of the first leave is still under way when d8 joins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from emulation.analysis.link_totals import sent_by_round
from emulation.analysis.records import Record, RunRecords, load
from emulation.experiments import plot, runner, tables
from emulation.experiments.aggregate import to_record
from emulation.experiments.arms import ARMS, UNIFORM
from emulation.experiments.catalogue import DEFAULT, SMOKE
from emulation.experiments.grid import Cell, set_all
from emulation.experiments.request import Request, arm_names, say_smoke
from emulation.experiments.statistics import interval
from emulation.launch import one_process
from emulation.report.plots import png
from emulation.scenario.preflight import check_against_model
from emulation.scenario.schema import Scenario
from peers.errors import InputError

NAME = "sequence"
DEVICES = 8  # d0 … d7
EVENTS = ((0.2, "leave", "d0"), (0.3, "join", "d8"), (0.5, "leave", "d1"), (0.7, "join", "d9"))
CORRECTION = 0.12  # of all rounds: longer than the time between the first two events
POINTS = 50  # evaluated rounds of a run
ROUNDS = {"full": 1000, "medium": 200, "compact": 100, "small": 60, SMOKE: 20}
CHOICES = tuple(name for name, arm in ARMS.items() if arm.event is not None and not arm.derived)
USUAL = (UNIFORM, "dominant", "proportional", "naive")
FIGURES = ("retain", "forget", "loss", "ri_mean", "ri_end", "bytes")
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

    def scenario(self) -> Scenario:
        scale, rounds = self.scale, self.rounds
        data: dict[str, Any] = {
            "name": self.name.replace("/", "-").replace("+", "-"),
            "seed": self.seed,
            "clock": "virtual",
            "devices": {"count": DEVICES},
            "data": {"persons": scale.persons, "batch": scale.batch},
            "adapter": {"max_devices": DEVICES + 2},
            "round": {"count": rounds},
            "correction": {"rounds": round(CORRECTION * rounds), "period": scale.period},
            "eval": {"every": max(1, rounds // POINTS)},
        }
        set_all(data, self.setting.changes)
        set_all(data, self.arm.changes)
        data["event"] = [
            {"round": round(share * rounds), "kind": self._kind(kind), "device": device}
            for share, kind, device in EVENTS
        ]
        return Scenario.model_validate(data)

    def _kind(self, kind: str) -> str:
        """A leave becomes the event of the arm: `naive` retires."""
        return self.arm.event or kind if kind == "leave" else kind


def choose_arms(names: str) -> tuple[str, ...]:
    """The arms of a list with commas, with `uniform`. An empty list: USUAL. Raises InputError."""
    wanted = arm_names(names, CHOICES, NAME)
    return tuple(dict.fromkeys((UNIFORM, *(wanted or USUAL))))


def run(request: Request, console: Console, run_one: runner.RunCell | None = None) -> None:
    """Run the cells that OUT lacks, write OUT/rows.csv, results.json and curves.png, and print the table."""
    wanted = [
        SequenceCell(DEFAULT, ARMS[name], seed, request.scale)
        for seed in request.seeds
        for name in request.arms
    ]
    measured = runner.run_cells(wanted, request.out, console, run_one or run_and_measure, request.jobs)
    rows = with_ri(measured)
    summary = aggregate(measured, rows)
    tables.write_results(request.out, rows, {"summary": summary})
    write_curves(rows, request.out / "curves.png")
    console.print(table(summary, ROUNDS[request.scale.name]))
    files = "rows.csv, results.json, curves.png"
    console.print(f"written: {request.out}/{files}", highlight=False, soft_wrap=True)
    say_smoke(request.scale, console)


def run_and_measure(cell: Cell, folder: Path, console: Console) -> Record:
    """Run the scenario of a cell and measure the run."""
    scenario = cell.scenario()
    check_against_model(scenario)
    one_process.run(scenario, folder / "run", ("round",))
    key = {"setting": cell.setting.name, "arm": cell.arm.name, "seed": cell.seed, "prefix_sha256": None}
    return {**key, **measure(load(folder / "run"))}


def measure(run: RunRecords) -> Record:
    """curve: by evaluated round. sent_bytes: of all devices. Raises InputError without evaluations."""
    by_round: dict[int, list[Record]] = {}
    for line in run.tagged("round"):
        by_round.setdefault(int(line["round"]), []).append(line)
    if not by_round:
        raise InputError(f"{run.folder}: lacks evaluations; allowed: a run that finished")
    left = {str(e.device): e.round for e in run.scenario.events if e.kind in ("leave", "retire")}
    sent = sum(n for lines in run.metrics.values() for n in sent_by_round(lines).values())
    return {"curve": [_point(r, lines, left) for r, lines in sorted(by_round.items())], "sent_bytes": sent}


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
        runs = [m for m in measured if m["arm"] == arm]
        values: dict[str, list[float]] = {name: [] for name in FIGURES}
        for one in runs:
            own = [row for row in rows if row["arm"] == arm and row["seed"] == one["seed"]]
            after = [row["ri"] for row in own if row["forget"] is not None and row["ri"] is not None]
            last = {**own[-1], "ri_end": own[-1]["ri"], "bytes": one["sent_bytes"]}
            last["ri_mean"] = fmean(after) if after else None
            for name in FIGURES:
                values[name] += [last[name]] if last[name] is not None else []
        means = {name: to_record(interval(numbers)) for name, numbers in values.items()}
        found.append({"arm": arm, "seeds": len(runs), **means})
    return found


def table(summary: Sequence[Record], rounds: int) -> Table:
    """One row for each arm."""
    made = tables.table(f"leave d0, join d8, leave d1, join d9 in {rounds} rounds")
    for head in ("arm", "retain", "forget", "loss", "RI % (mean)", "RI % (end)", "MB"):
        made.add_column(head, justify="left" if head == "arm" else "right", no_wrap=True)
    for e in summary:
        spreads = [tables.spread(e[name]) for name in FIGURES[:3]]
        sent = None if e["bytes"] is None else {"mean": e["bytes"]["mean"] / 1e6}
        ri = [tables.number(e[name], 1) for name in ("ri_mean", "ri_end")]
        made.add_row(e["arm"], *spreads, *ri, tables.number(sent, 1))
    made.caption = (
        "retain, loss: on the data of the present devices at the end; forget: accuracy on the data of d0 and "
        "d1 at the end; RI (mean): over the rounds after the first event; MB: of all devices"
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
