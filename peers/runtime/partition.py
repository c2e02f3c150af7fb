"""An emulated partition: whom a device does not hear any more, as the testbed writes it into its folder."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from pathlib import Path

FILE = "cut_off.json"
SIGNAL = signal.SIGUSR1


def ignore() -> None:
    """Of a device that is still starting: it reads the file once it listens."""
    signal.signal(SIGNAL, signal.SIG_IGN)


def write(folder: Path, cut_off: Iterable[str]) -> None:
    """Takes effect when the device starts or gets a SIGNAL. Nobody: the partition is healed."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{FILE}.tmp"
    unfinished.write_text(json.dumps(sorted(cut_off)), encoding="utf-8")
    unfinished.replace(folder / FILE)


def read(folder: Path) -> frozenset[str]:
    """Nobody where nothing, or nothing sensible, is written."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return frozenset()
    return (
        frozenset(found)
        if isinstance(found, list) and all(isinstance(d, str) for d in found)
        else frozenset()
    )
