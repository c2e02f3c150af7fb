"""Makes the runs of an experiment, one after the other or a few at a time; what is done stays done."""

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
from emulation.analysis.records import Record
from emulation.experiments.arms import BEFORE, UNIFORM
from emulation.experiments.grid import Cell
from emulation.experiments.metrics import key, measure
from emulation.experiments.parallel import chains, run_all
from emulation.launch import local
from emulation.scenario.loading import dump
from emulation.scenario.preflight import check_against_model
from peers.config import CheckpointConfig
from peers.errors import InputError
from peers.storage import checkpoint

LOGS = "logs"
DONE = "measures.json"  # written last and whole: where it is, the cell is done
Make = Callable[[Cell, Path, Console], Record]


def make_all(
    cells: Sequence[Cell], out: Path, console: Console, make: Make | None = None, jobs: int = 1
) -> list[Record]:
    """The measures of all cells that are arms; what OUT lacks is run now, `jobs` seeds or settings at a time.

    Raises launcher.RunFailed, and InputError where OUT holds a cell of other settings or where two arms that
    should differ only after the event differ before it.
    """
    missing = [cell for cell in cells if read(cell, out) is None]
    make, began = make or make_cell, time.monotonic()

    def left(made: int) -> str:
        minutes = (time.monotonic() - began) / made * (len(missing) - made) / 60 if made else None
        return "" if minutes is None else f", about {minutes:.0f} min left"

    if jobs == 1:
        for made, cell in enumerate(missing):
            console.print(
                f"\\[{cells.index(cell) + 1}/{len(cells)}] {cell.name}{left(made)}", highlight=False
            )
            run_cell(cell, out, console, make)
    elif missing:
        said: set[str] = set()

        def look() -> None:
            done = [cell.name for cell in missing if (out / cell.name / DONE).exists()]
            for name in done:
                if name not in said:
                    said.add(name)
                    console.print(f"\\[{len(said)}/{len(missing)}] {name}{left(len(said))}", highlight=False)

        console.print(
            f"{len(missing)} runs, {jobs} seeds or settings at a time; logs: {out / LOGS}", highlight=False
        )
        by_seed = chains(missing, lambda cell: (cell.setting.name, cell.seed))
        run_all(by_seed, partial(_alone, out, make), lambda cell: cell.name, jobs, out / LOGS, look)
    found = [one for cell in cells if (one := read(cell, out)) is not None and cell.arm != BEFORE]
    check_prefixes(found)
    return found


def _alone(out: Path, make: Make, cell: Cell) -> None:
    """In a process of its own, whose output goes to a file."""
    run_cell(cell, out, Console(), make)


def run_cell(cell: Cell, out: Path, console: Console, make: Make) -> Record:
    """Make a cell from nothing: what an interruption left of it is removed."""
    folder = out / cell.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    record = {"scenario_sha256": digest(cell), **make(cell, folder, console)}
    unfinished = folder / f"{DONE}.tmp"
    unfinished.write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
    unfinished.replace(folder / DONE)
    return record


def make_cell(cell: Cell, folder: Path, console: Console) -> Record:
    """Run the scenario, then examine its snapshots, which are removed after that; a checkpoint stays."""
    scenario, run = cell.scenario(), folder / "run"
    if cell.before is not None:
        before = folder.parents[1] / BEFORE.name / folder.name / "run"
        _check_checkpoints(cell.before, before)
        begins_with = CheckpointConfig(resume=str(before))
        scenario = scenario.model_copy(update={"checkpoint": begins_with})
    check_against_model(scenario)
    (run / KEPT_SNAPSHOTS).mkdir(parents=True)
    local.run(scenario, run, console)
    if cell.arm == BEFORE:
        _check_checkpoints(cell, run)
        found = key(cell)
    else:
        found = measure(cell, run)
    for bulky in (KEPT_SNAPSHOTS, "adapters"):
        shutil.rmtree(run / bulky, ignore_errors=True)
    return found


def _check_checkpoints(cell: Cell, run: Path) -> None:
    """Raises launcher.RunFailed where a device left none: it would begin with nothing."""
    missing = [d for d in cell.scenario().initial_devices if not checkpoint.path_of(run, d).is_file()]
    if missing:
        raise local.RunFailed(
            f"{run}: no checkpoint of {', '.join(missing)}; remove {run.parent} to make it anew"
        )


def read(cell: Cell, out: Path) -> Record | None:
    """What a cell that is done gave. Raises InputError if it was made from another scenario."""
    path = out / cell.name / DONE
    if not path.exists():
        return None
    found: Record = json.loads(path.read_text(encoding="utf-8"))
    if found["scenario_sha256"] != digest(cell):
        raise InputError(
            f"--out: {path.parent} was made with other settings; allowed: the folder of an experiment with "
            "the same --scale, made by the same version, or a new one"
        )
    return found


def digest(cell: Cell) -> str:
    """Of all that made it: the whole scenario, and that of the checkpoint."""
    parts = [cell] if cell.before is None else [cell.before, cell]
    return sha256("".join(dump(part.scenario()) for part in parts).encode()).hexdigest()


def check_prefixes(found: Sequence[Record]) -> None:
    """Arms that branch are the same up to the event, or nothing follows from a difference after it."""
    uniform = {(f["setting"], f["seed"]): f["prefix_sha256"] for f in found if f["arm"] == UNIFORM}
    for one in found:
        before = uniform.get((one["setting"], one["seed"]))
        if one["prefix_sha256"] is not None and before is not None and one["prefix_sha256"] != before:
            raise InputError(
                f"{one['setting']}/{one['arm']}/seed-{one['seed']}: its rounds before the event are not "
                f"those of {UNIFORM}; allowed: runs of the same code on the same machine"
            )
