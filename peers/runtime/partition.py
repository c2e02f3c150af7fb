"""An emulated partition: the testbed writes into a device's folder which devices it cannot reach."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from pathlib import Path

FILE = "cut_off.json"
SIGNAL = signal.SIGUSR1


def ignore() -> None:
    """Ignore the signal while the device starts. It reads the file when it handles events."""
    signal.signal(SIGNAL, signal.SIG_IGN)


def write(folder: Path, cut_off: Iterable[str]) -> None:
    """Write the ids of the cut-off devices. An empty list heals the partition.

    The device reads the file when it starts and when it gets `SIGNAL`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{FILE}.tmp"
    unfinished.write_text(json.dumps(sorted(cut_off)), encoding="utf-8")
    unfinished.replace(folder / FILE)


def read(folder: Path) -> frozenset[str]:
    """The ids of the cut-off devices. Empty if the file is missing or invalid."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return frozenset()
    valid = isinstance(found, list) and all(isinstance(device, str) for device in found)
    return frozenset(found) if valid else frozenset()
