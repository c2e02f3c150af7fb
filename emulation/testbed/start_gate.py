"""Gates: a container starts early and waits until its device may begin.

The imports of a container take seconds; a process from a forkserver has them already. The backend `compose`
starts containers early and opens a gate for each, so that a device joins without delay as on `local`.
"""

from __future__ import annotations

import time
from pathlib import Path

FOLDER = ".gates"
POLL_S = 0.05


def open_to(run: Path, device: str) -> None:
    """Let a device begin, now or when it is started."""
    (run / FOLDER).mkdir(exist_ok=True)
    (run / FOLDER / device).touch()


def close_to(run: Path, device: str) -> None:
    """Let a device wait when it is started the next time."""
    (run / FOLDER / device).unlink(missing_ok=True)


def is_open(run: Path, device: str) -> bool:
    """Whether a device may begin."""
    return (run / FOLDER / device).exists()


def wait(folder: Path, device: str) -> None:
    """Wait until the gate of a device is open. `folder`: the folder of all gates."""
    while not (folder / device).exists():
        time.sleep(POLL_S)
