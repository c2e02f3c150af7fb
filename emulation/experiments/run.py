"""An experiment from its name to its tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from emulation.experiments import grid, plot, runner, tables
from emulation.experiments.aggregate import summary, verdicts
from emulation.experiments.arms import NONE
from emulation.experiments.catalogue import Experiment, Scale
from emulation.experiments.paired import rows
from emulation.experiments.regime_check import evidence


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    experiment: Experiment
    scale: Scale
    arms: tuple[str, ...]
    seeds: int
    out: Path
    jobs: int = 1


def run(request: Request, console: Console, make: runner.Make | None = None) -> None:
    """Makes what OUT lacks, writes OUT/rows.csv, results.json and curves.png, prints the tables."""
    wanted = grid.cells(request.experiment, request.arms, request.scale, request.seeds)
    measures = runner.make_all(wanted, request.out, console, make, request.jobs)
    with_none = NONE in request.arms
    compared = rows(measures, with_none)
    summed, found = summary(compared), verdicts(compared)
    seen = evidence(measures)
    tables.write(request.out, compared, {"summary": summed, "verdicts": found, "evidence": seen})
    plot.write(measures, with_none, request.out / "curves.png")
    tables.show(console, summed)
    tables.say(console, seen, found)
    console.print(
        f"written: {request.out}/rows.csv, results.json, curves.png", highlight=False, soft_wrap=True
    )
    if request.scale.name == "tiny":
        console.print("scale tiny: too short to learn anything; no figure of it means anything")
