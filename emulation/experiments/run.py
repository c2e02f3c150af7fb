"""Runs an experiment and writes its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from emulation.analysis.records import Record
from emulation.experiments import constant_arms, diagnoses, grid, plot, publication, runner, tables
from emulation.experiments.aggregate import DOMINANT, aggregate, verdicts
from emulation.experiments.arms import NONE
from emulation.experiments.catalogue import Experiment, Scale
from emulation.experiments.paired import paired_rows
from emulation.experiments.regime_check import regime_evidence
from emulation.experiments.request import say_smoke
from emulation.scenario.preflight import check_against_model


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    experiment: Experiment
    scale: Scale
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    jobs: int = 1
    publish: Path | None = None  # folder for rows.csv of a published table


def check(request: Request) -> None:
    """Raises InputError, before anything starts, for a scenario or a publication that is not possible."""
    if request.publish is not None:
        publication.check_before(request.seeds)
    for setting in request.experiment.settings:
        scenarios = [c.scenario() for c in _cells(request, request.seeds[:1]) if c.setting == setting]
        check_against_model(scenarios[0])


def _cells(request: Request, seeds: Iterable[int]) -> list[grid.Cell]:
    return grid.cells(request.experiment, request.arms, request.scale, seeds)


def run(request: Request, console: Console, run_one: runner.RunCell | None = None) -> None:
    """Run the cells that OUT lacks, write OUT/rows.csv, results.json and curves.png, and print the tables."""
    measures = runner.run_cells(_cells(request, request.seeds), request.out, console, run_one, request.jobs)
    with_none = NONE in request.arms
    rows = paired_rows(measures, with_none)
    summary, conclusions, evidence = aggregate(rows), verdicts(rows), regime_evidence(measures)
    against, by_round = constant_arms.against_constants(rows), diagnoses.shares_by_round(measures)
    results = {"summary": summary, "verdicts": conclusions, "evidence": evidence}
    results |= {"against_constants": against, "diagnoses": by_round}
    tables.write_results(request.out, rows, results)
    diagnoses.write_diagnoses(measures, request.out / "rounds.jsonl")
    plot.write_curves(measures, with_none, request.out / "curves.png")
    console.print(f"{request.scale.name}, {publication.header(measures)}", highlight=False)
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
    _finish(request, measures, console)


def _finish(request: Request, measures: Sequence[Record], console: Console) -> None:
    say_smoke(request.scale, console)
    if request.publish is not None:
        name = f"{request.experiment.name}-{request.scale.name}"
        copy = publication.publish(measures, request.out / "rows.csv", request.publish, name)
        console.print(f"published: {copy}", highlight=False, soft_wrap=True)
