"""Runs an experiment and writes its tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from emulation.experiments import grid, plot, runner, tables
from emulation.experiments.aggregate import aggregate, verdicts
from emulation.experiments.arms import NONE
from emulation.experiments.catalogue import Experiment, Scale
from emulation.experiments.paired import paired_rows
from emulation.experiments.regime_check import regime_evidence


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    experiment: Experiment
    scale: Scale
    arms: tuple[str, ...]
    seeds: int
    out: Path
    jobs: int = 1


def run(request: Request, console: Console, run_one: runner.RunCell | None = None) -> None:
    """Run the cells that OUT lacks, write OUT/rows.csv, results.json and curves.png, and print the tables."""
    wanted = grid.cells(request.experiment, request.arms, request.scale, request.seeds)
    measures = runner.run_cells(wanted, request.out, console, run_one, request.jobs)
    with_none = NONE in request.arms
    rows = paired_rows(measures, with_none)
    summary, conclusions, evidence = aggregate(rows), verdicts(rows), regime_evidence(measures)
    tables.write_results(
        request.out, rows, {"summary": summary, "verdicts": conclusions, "evidence": evidence}
    )
    plot.write_curves(measures, with_none, request.out / "curves.png")
    tables.print_tables(console, summary)
    tables.print_conclusions(console, evidence, conclusions)
    console.print(
        f"written: {request.out}/rows.csv, results.json, curves.png", highlight=False, soft_wrap=True
    )
    if request.scale.name == "tiny":
        console.print("scale tiny: too short to learn anything; its results have no meaning")
