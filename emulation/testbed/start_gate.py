"""Containers that are ready and wait: a device that joins takes part at once, not seconds later.

A container takes seconds to import what it needs; a process that a launcher forks does not. So that both join
at the same moment of a run, `unweft run --on compose` starts containers early and opens a gate for each.
"""

from __future__ import annotations

import time
from pathlib import Path

FOLDER = ".gates"
POLL_S = 0.05


def open_to(run: Path, device: str) -> None:
    """The device may begin, or may when it is started."""
    (run / FOLDER).mkdir(exist_ok=True)
    (run / FOLDER / device).touch()


def close_to(run: Path, device: str) -> None:
    """When it is started the next time, it is to wait."""
    (run / FOLDER / device).unlink(missing_ok=True)


def is_open(run: Path, device: str) -> bool:
    return (run / FOLDER / device).exists()


def wait(folder: Path, device: str) -> None:
    """Until the gate of a device, in a folder of gates, is open."""
    while not (folder / device).exists():
        time.sleep(POLL_S)
