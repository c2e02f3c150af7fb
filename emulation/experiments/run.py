"""Runs an experiment of the catalogue and writes its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console

from emulation.analysis.records import Record
from emulation.experiments import (
    baselines,
    constant_arms,
    cost_plane,
    diagnoses,
    grid,
    plot,
    priorities,
    publication,
    re_emergence,
    runner,
    tables,
)
from emulation.experiments.aggregate import DOMINANT, aggregate, verdicts
from emulation.experiments.catalogue import BASELINES, Experiment
from emulation.experiments.evaluation import example_sets
from emulation.experiments.paired import paired_rows, with_derived
from emulation.experiments.regime_check import regime_evidence
from emulation.experiments.request import Request
from emulation.experiments.seeds import PUBLISHED, PUBLISHED_LONG

FILES = "rows.csv, results.json, rounds.jsonl, curves.png, plane.png"


def check(experiment: Experiment, request: Request) -> None:
    """Raises InputError, before anything starts, for a scenario or a publication that is not possible."""
    request.check(PUBLISHED_LONG if experiment.name == BASELINES else PUBLISHED)
    cells = _cells(experiment, request, request.seeds[:1])
    grid.check_cells(cells)
    for cell in {cell.setting.name: cell for cell in cells}.values():
        example_sets(cell.scenario(), cell.retained, cell.leaver)


def _cells(experiment: Experiment, request: Request, seeds: Iterable[int]) -> list[grid.Cell]:
    return grid.cells(experiment, request.arms, request.scale, seeds)


def run(
    experiment: Experiment, request: Request, console: Console, run_one: runner.RunCell | None = None
) -> None:
    """Run the cells that OUT lacks, print the tables, and write OUT/rows.csv, results.json and the plots."""
    cells = _cells(experiment, request, request.seeds)
    measures = runner.run_cells(cells, request.out, console, run_one, request.jobs)
    found = Found.of(experiment, request, measures)
    console.print(f"{request.scale.name}, {publication.header(measures)}", highlight=False)
    found.show(console)
    found.write(request, measures)
    request.finish(experiment.name, measures, FILES, console)
    if request.publish is not None and found.by_round:
        name = f"{experiment.name}-{request.scale.name}-diagnoses.csv"
        diagnoses.publish_diagnoses(measures, request.publish / name, DOMINANT)


class Found(NamedTuple):
    """The results of an experiment, each as rows of results.json. kept: empty but for `baselines`.

    joins: the settings in which the last device joins.
    """

    rows: list[Record]
    summary: list[Record]
    verdicts: list[Record]
    evidence: list[Record]
    against: list[Record]
    by_round: list[Record]
    kept: list[Record]
    priorities: list[Record]
    re_emergence: list[Record]
    joins: tuple[str, ...]

    @classmethod
    def of(cls, experiment: Experiment, request: Request, measures: Sequence[Record]) -> Found:
        rows, kept = paired_rows(measures, request.arms), list[Record]()
        joins = tuple(setting.name for setting in experiment.settings if setting.joins)
        if experiment.name == BASELINES:
            rows = baselines.with_storage(rows, measures)
            kept = baselines.storage(rows)
        return cls(
            rows,
            aggregate(rows),
            verdicts(rows),
            regime_evidence(measures),
            constant_arms.against_constants(rows),
            diagnoses.shares_by_round(measures),
            kept,
            priorities.priorities(measures),
            re_emergence.re_emergence([m for m in measures if m["setting"] not in joins]),
            joins,
        )

    def show(self, console: Console) -> None:
        """Print the tables."""
        if self.kept:
            baselines.print_baselines(console, self.summary, self.kept)
        tables.print_tables(console, self.summary, self.joins)
        for setting in dict.fromkeys(one["setting"] for one in self.re_emergence):
            console.print(re_emergence.re_emergence_table(self.re_emergence, setting))
        for setting in dict.fromkeys(one["setting"] for one in self.priorities):
            console.print(priorities.priorities_table(self.priorities, setting))
        tables.print_conclusions(console, self.evidence, self.verdicts)
        console.print(constant_arms.best_of_each(self.summary, self.evidence))
        for found, table in (
            (self.by_round, diagnoses.diagnoses_table(self.by_round, DOMINANT)),
            (self.against, constant_arms.constants_table(self.against)),
        ):
            if found:
                console.print(table)

    def write(self, request: Request, measures: Sequence[Record]) -> None:
        """Write the files of FILES."""
        results = {"summary": self.summary, "verdicts": self.verdicts, "evidence": self.evidence}
        results |= {"against_constants": self.against, "diagnoses": self.by_round}
        results |= {"priorities": self.priorities, "re_emergence": self.re_emergence}
        results |= {"kept": self.kept} if self.kept else {}
        tables.write_results(request.out, self.rows, results)
        diagnoses.write_diagnoses(measures, request.out / "rounds.jsonl")
        everything = with_derived(measures, request.arms)
        plot.write_curves(everything, request.out / "curves.png", self.joins)
        cost_plane.write_plane(self.rows, everything, request.out / "plane.png")
