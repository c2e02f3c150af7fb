"""The record of a run under Slurm: the array task of each device's present life. `unweft churn` reads it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from emulation.analysis import records
from emulation.testbed import start_gate
from emulation.testbed.slurm import Slurm
from peers.errors import InputError

FILE = "slurm.json"


def write(run: Path, name: str, tasks: Mapping[str, str], all_processes: bool) -> None:
    """Write the name of the run's jobs and the task of each device, by device.

    `all_processes`: signals go to all processes of a task (slurm.Slurm.signal).
    """
    record = {"name": name, "tasks": dict(tasks), "all_processes": all_processes}
    records.write_whole(run / FILE, json.dumps(record, indent=1))


def exists(run: Path) -> bool:
    return (run / FILE).exists()


def read(run: Path) -> tuple[str, dict[str, str], bool]:
    """What `write` was given."""
    found = records.read_object(run / FILE)
    return str(found["name"]), dict(found["tasks"]), bool(found["all_processes"])


def finder(
    run: Path, make: Callable[[str], Slurm] = Slurm
) -> Callable[[str], Callable[[signal.Signals], None]]:
    """Finds a device of a run: it returns how to signal it, or raises InputError if it does not run.

    `make`: makes the commands of Slurm from the name of the run's jobs. Raises SlurmFailed.
    """
    name, of_device, all_processes = read(run)
    slurm = make(name)
    running = {task for task, about in slurm.tasks().items() if about.runs}

    def find(device: str) -> Callable[[signal.Signals], None]:
        task = of_device.get(device, "")
        if task not in running or not start_gate.is_open(run, device):
            known = ", ".join(sorted(of_device))
            raise InputError(f"{device}: does not run in {run}; allowed: a device that runs, of {known}")
        return lambda number: slurm.signal(task, number.name, all_processes)

    return find
