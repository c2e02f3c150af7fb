"""Runs the cells of an experiment, one by one or in parallel. Finished cells are not run again."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

from rich.console import Console

from emulation.analysis.evaluator import KEPT_SNAPSHOTS
from emulation.analysis.records import Record, RunRecords, load
from emulation.experiments.arms import BEFORE, UNIFORM
from emulation.experiments.grid import Cell
from emulation.experiments.metrics import cell_key, measure_run
from emulation.experiments.parallel import chains, run_chains
from emulation.experiments.publication import origin
from emulation.experiments.unlearners import unlearner_of
from emulation.launch import one_process
from emulation.launch.errors import RunFailed
from emulation.scenario.loading import dump
from emulation.scenario.preflight import check_against_model
from peers.config import CheckpointConfig
from peers.errors import InputError
from peers.storage import checkpoint

LOGS = "logs"
EVALUATED = ("end",)  # tags of the devices' snapshots that `measure_run` reads from the evaluations
DONE = "measures.json"  # written last and atomically: a cell with this file is done
MEASURES = 3  # version of the form of these files. 3: costs of the unlearning in the sequence
RunCell = Callable[[Cell, Path, Console], Record]  # runs a cell in a folder and returns its measures


def run_cells(
    cells: Sequence[Cell], out: Path, console: Console, run_one: RunCell | None = None, jobs: int = 1
) -> list[Record]:
    """Run the cells that OUT lacks, and return the measures of all cells that are arms.

    jobs: the number of parallel chains; a chain is the cells of one setting and seed.
    Raises RunFailed, and InputError if OUT has a cell with other settings, or if arms that should differ only
    after the event differ before it.
    """
    missing = [cell for cell in cells if read_measures(cell, out) is None]
    progress = Progress(console, missing)
    if jobs == 1:
        for done, cell in enumerate(missing):
            progress.print_cell(cell.name, cells.index(cell) + 1, len(cells), missing[:done])
            run_cell(cell, out, console, run_one or run_and_measure)
    elif missing:
        _run_parallel(missing, out, run_one or run_and_measure, jobs, progress)
    found = [one for cell in cells if (one := read_measures(cell, out)) is not None and cell.arm != BEFORE]
    check_prefixes(found)
    return found


class Progress:
    """Prints one line for each cell, with an estimate of the remaining time."""

    def __init__(self, console: Console, missing: Sequence[Cell]) -> None:
        self.console, self._missing = console, missing
        self._printed: dict[str, Cell] = {}
        self._began_s = time.monotonic()

    def print_cell(self, name: str, number: int, total: int, done: Sequence[Cell]) -> None:
        """`done`: the missing cells that are done, for the estimate."""
        self.console.print(f"\\[{number}/{total}] {name}{self._remaining(done)}", highlight=False)

    def print_done(self, out: Path) -> None:
        """Print each cell that is done and not yet printed."""
        for cell in self._missing:
            if cell.name not in self._printed and (out / cell.name / DONE).exists():
                self._printed[cell.name] = cell
                done = list(self._printed.values())
                self.print_cell(cell.name, len(done), len(self._missing), done)

    def _remaining(self, done: Sequence[Cell]) -> str:
        """An estimate by the local steps of the cells."""
        if not done:
            return ""
        left = sum(cell.effort for cell in self._missing) / sum(cell.effort for cell in done) - 1
        minutes = (time.monotonic() - self._began_s) * left / 60
        return f", about {minutes:.0f} min left"


def _run_parallel(
    missing: Sequence[Cell], out: Path, run_one: RunCell, jobs: int, progress: Progress
) -> None:
    progress.console.print(
        f"{len(missing)} runs, {jobs} seeds or settings at a time; logs: {out / LOGS}", highlight=False
    )
    by_seed = chains(missing, lambda cell: (cell.setting.name, cell.seed))
    work = partial(_run_in_child, out, run_one, origin())
    model = missing[0].scenario().model
    show = partial(progress.print_done, out)
    run_chains(by_seed, work, lambda cell: cell.name, jobs, out / LOGS, show, model)


def _run_in_child(out: Path, run_one: RunCell, made_by: Record, cell: Cell) -> None:
    """Run a cell in a child process, whose output goes to a log."""
    run_cell(cell, out, Console(), run_one, made_by)


def run_cell(
    cell: Cell, out: Path, console: Console, run_one: RunCell, made_by: Record | None = None
) -> Record:
    """Run a cell and write its measures. The remains of an interrupted run are removed first.

    made_by: the code that runs it (`publication.origin`); None: look now.
    """
    folder = out / cell.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    head = {"measures": MEASURES, "scenario_sha256": scenario_digest(cell), **(made_by or origin())}
    record = {**head, **run_one(cell, folder, console)}
    unfinished = folder / f"{DONE}.tmp"
    unfinished.write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
    unfinished.replace(folder / DONE)
    return record


def run_alone(
    cell: Cell, folder: Path, tags: Sequence[str], measure: Callable[[RunRecords], Record]
) -> Record:
    """Run and measure a cell that branches from no checkpoint. tags: of the snapshots that are evaluated.

    The measures of a baseline have the costs of its unlearning (`Unlearner.costs`).
    """
    scenario, run = cell.scenario(), folder / "run"
    one_process.load_shared(scenario)
    check_against_model(scenario)
    unlearner = unlearner_of(cell, run)
    one_process.run(scenario, run, tags, None if unlearner is None else unlearner.make_learner)
    costs = {} if unlearner is None else unlearner.costs()
    return {**cell_key(cell), "prefix_sha256": None, **measure(load(run)), **costs}


def run_and_measure(cell: Cell, folder: Path, console: Console) -> Record:
    """Run the scenario of a cell and measure the run. Snapshots are removed then; a checkpoint is kept."""
    scenario, run = cell.scenario(), folder / "run"
    if cell.before is not None:
        before = folder.parents[1] / BEFORE.name / folder.name / "run"
        _check_checkpoints(cell.before, before)
        resume = CheckpointConfig(resume=str(before))
        scenario = scenario.model_copy(update={"checkpoint": resume})
    one_process.load_shared(scenario)
    check_against_model(scenario)
    (run / KEPT_SNAPSHOTS).mkdir(parents=True)
    try:
        unlearner = unlearner_of(cell, run)
        one_process.run(scenario, run, EVALUATED, None if unlearner is None else unlearner.make_learner)
        if cell.arm != BEFORE:
            measures = measure_run(cell, run)
            return measures if unlearner is None else unlearner.with_costs(measures)
        _check_checkpoints(cell, run)
        return cell_key(cell)
    finally:
        for bulky in (KEPT_SNAPSHOTS, "adapters"):  # they may hold blocks that were forgotten
            shutil.rmtree(run / bulky, ignore_errors=True)


def _check_checkpoints(cell: Cell, run: Path) -> None:
    """Raises RunFailed if a device has no checkpoint, since it would then start untrained."""
    missing = [d for d in cell.scenario().initial_devices if not checkpoint.path_of(run, d).is_file()]
    if missing:
        raise RunFailed(f"{run}: no checkpoint of {', '.join(missing)}; remove {run.parent} to run it again")


def read_measures(cell: Cell, out: Path) -> Record | None:
    """The measures of a cell, or None if it is not done.

    Raises InputError if its scenario differs, or if another version with other measures wrote them.
    """
    path = out / cell.name / DONE
    if not path.exists():
        return None
    found: Record = json.loads(path.read_text(encoding="utf-8"))
    if found.get("measures") != MEASURES:
        raise InputError(
            f"--out: {path.parent} has the measures of another version ({found.get('revision')}); "
            "allowed: that version, or a new folder"
        )
    if found["scenario_sha256"] != scenario_digest(cell):
        raise InputError(
            f"--out: {path.parent} was run with other settings; allowed: the folder of an experiment with "
            "the same --scale and --set, or a new folder"
        )
    return found


def scenario_digest(cell: Cell) -> str:
    """SHA-256 of the scenario of a cell and of the scenario of its checkpoint."""
    parts = [cell] if cell.before is None else [cell.before, cell]
    return sha256("".join(dump(part.scenario()) for part in parts).encode()).hexdigest()


def check_prefixes(found: Sequence[Record]) -> None:
    """Branching arms must be equal up to the event. Raises InputError otherwise."""
    uniform = {(f["setting"], f["seed"]): f["prefix_sha256"] for f in found if f["arm"] == UNIFORM}
    for one in found:
        before = uniform.get((one["setting"], one["seed"]))
        if one["prefix_sha256"] is not None and before is not None and one["prefix_sha256"] != before:
            raise InputError(
                f"{one['setting']}/{one['arm']}/seed-{one['seed']}: its rounds before the event differ from "
                f"those of {UNIFORM}; allowed: runs of the same code on the same machine"
            )
