"""When a run began, for devices that are started one by one: on one machine all count from that moment."""

from __future__ import annotations

import json
import time
from pathlib import Path

FILE = "epoch.json"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def write(run: Path) -> None:
    """The run begins now."""
    moment = {"epoch_ns": time.monotonic_ns(), "boot_id": _boot_id(), "unix_ns": time.time_ns()}
    (run / FILE).write_text(json.dumps(moment), encoding="utf-8")


def read(run: Path, wall: bool = False) -> int | None:
    """Monotonic ns, or those since 1970. None if nobody wrote it, or on another machine, where monotonic
    time is another."""
    try:
        found = json.loads((run / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if wall:
        return int(found["unix_ns"])
    return int(found["epoch_ns"]) if found["boot_id"] == _boot_id() else None


def _boot_id() -> str:
    return BOOT_ID.read_text(encoding="ascii").strip() if BOOT_ID.exists() else ""
