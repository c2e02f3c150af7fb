"""An experiment from its name to its tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from emulation.experiments import cells, output, plan, plot
from emulation.experiments.arms import NONE
from emulation.experiments.catalogue import Experiment, Scale
from emulation.experiments.compare import rows
from emulation.experiments.evidence import evidence
from emulation.experiments.summarise import summary, verdicts


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    experiment: Experiment
    scale: Scale
    arms: tuple[str, ...]
    seeds: int
    out: Path
    jobs: int = 1


def run(request: Request, console: Console, make: cells.Make | None = None) -> None:
    """Makes what OUT lacks, writes OUT/rows.csv, results.json and curves.png, prints the tables."""
    wanted = plan.cells(request.experiment, request.arms, request.scale, request.seeds)
    measures = cells.make_all(wanted, request.out, console, make, request.jobs)
    with_none = NONE in request.arms
    compared = rows(measures, with_none)
    summed, found = summary(compared), verdicts(compared)
    seen = evidence(measures)
    output.write(request.out, compared, {"summary": summed, "verdicts": found, "evidence": seen})
    plot.write(measures, with_none, request.out / "curves.png")
    output.show(console, summed)
    output.say(console, seen, found)
    console.print(
        f"written: {request.out}/rows.csv, results.json, curves.png", highlight=False, soft_wrap=True
    )
    if request.scale.name == "tiny":
        console.print("scale tiny: too short to learn anything; no figure of it means anything")
