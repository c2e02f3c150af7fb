"""Runs an experiment and writes its tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from emulation.experiments import constant_arms, diagnoses, grid, plot, runner, tables
from emulation.experiments.aggregate import DOMINANT, aggregate, verdicts
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
    against, by_round = constant_arms.against_constants(rows), diagnoses.shares_by_round(measures)
    results = {"summary": summary, "verdicts": conclusions, "evidence": evidence}
    results |= {"against_constants": against, "diagnoses": by_round}
    tables.write_results(request.out, rows, results)
    diagnoses.write_diagnoses(measures, request.out / "rounds.jsonl")
    plot.write_curves(measures, with_none, request.out / "curves.png")
    tables.print_tables(console, summary)
    tables.print_conclusions(console, evidence, conclusions)
    console.print(constant_arms.best_of_each(summary, evidence))
    for found, table in (
        (by_round, diagnoses.diagnoses_table(by_round, DOMINANT)),
        (against, constant_arms.constants_table(against)),
    ):
        if found:
            console.print(table)
    files = "rows.csv, results.json, rounds.jsonl, curves.png"
    console.print(f"written: {request.out}/{files}", highlight=False, soft_wrap=True)
    if request.scale.name == "tiny":
        console.print("scale tiny: too short to learn anything; its results have no meaning")
