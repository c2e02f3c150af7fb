"""The start time and the name of a run whose devices are started one by one.

All devices count time from it. The name is in every statement that they sign.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from emulation.analysis.records import Record

FILE = "epoch.json"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def write(run: Path, name: str = "") -> None:
    """Write the present time as the start of the run. `name`: of the run, if this folder gives it one."""
    moment = {"epoch_ns": time.monotonic_ns(), "boot_id": boot_id(), "unix_ns": time.time_ns(), "run": name}
    (run / FILE).write_text(json.dumps(moment), encoding="utf-8")


def load(run: Path) -> Record:
    """What `write` has written: epoch_ns, boot_id, unix_ns, run. Empty if it was not written."""
    try:
        found = json.loads((run / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read(run: Path, wall: bool = False) -> int | None:
    """The start of the run in monotonic ns; with `wall`, in ns since 1970.

    None if it was not written, or if it was written on another machine, whose monotonic time differs.
    """
    found = load(run)
    if found and wall:
        return int(found["unix_ns"])
    return int(found["epoch_ns"]) if found and found["boot_id"] == boot_id() else None


def name(run: Path) -> str:
    """The name of the run in this folder. "": the folder gives it none."""
    return str(load(run).get("run", ""))


def boot_id() -> str:
    """The name of this boot of this machine. "": the system has none."""
    return BOOT_ID.read_text(encoding="ascii").strip() if BOOT_ID.exists() else ""
