"""A script that starts a run outside `if __name__ == "__main__":` is refused before anything is written.

Every device process imports the main module of the process that started it (multiprocessing's forkserver).
Without the guard it would start the run again.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection

from emulation.scenario.schema import Scenario
from peers.errors import InputError

UNGUARDED = 93  # exit status of a process that met `run` while it imported the main module


def refuse_in_child() -> None:
    """End this process if it is a child that still imports the main module."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself asks
        os._exit(UNGUARDED)


def check(scenario: Scenario) -> None:
    """Raises InputError if a child process cannot import the main module. Starts one idle child."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is None:  # an interactive session or a notebook: children import nothing
        return
    from emulation.launch.forkserver import Forkserver  # here, since it imports torch

    forkserver = Forkserver(scenario.model, scenario.plugins)
    try:
        probe = forkserver.start(_do_nothing, name="probe")
        probe.join()
    finally:
        forkserver.close()
    if probe.exitcode == UNGUARDED:
        raise InputError(
            f"{script}: unweft.run is called outside `if __name__ == '__main__':`, and device processes "
            "import this file again; allowed: the call inside this guard"
        )
    if probe.exitcode:
        raise InputError(f"{script}: device processes cannot import it; allowed: a file that can be imported")


def _do_nothing(lifeline: Connection | None = None) -> None:
    """The work of the probe."""
