"""The log of `unweft churn`: its events, in the run's folder. A killed device cannot record its crash itself.

`python -m emulation.testbed.churn_log KIND DEVICE...` logs an event with the present time. `unweft churn`
runs this command in a container of the testbed, where the run's folder is mounted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from emulation.analysis.records import Record, read_lines
from emulation.testbed import epoch

FILE = "churn.jsonl"
MOMENT = ("monotonic_ns", "unix_ns", "boot_id")  # fields of the time of an event


def log_event(run: Path, kind: str, devices: Iterable[str], **more: object) -> None:
    """Log an event that is about to happen to devices. `more`: further fields of the event."""
    moment = {"monotonic_ns": time.monotonic_ns(), "unix_ns": time.time_ns(), "boot_id": epoch.boot_id()}
    with (run / FILE).open("a", encoding="utf-8") as file:
        for device in devices:
            file.write(json.dumps({"kind": kind, "device": device, **moment, **more}) + "\n")


def read(run: Path, epoch_ns: int) -> list[Record]:
    """All logged events in order: kind, device, t_s in seconds since the start of the run."""
    started = epoch.load(run)
    return [
        {**{k: v for k, v in line.items() if k not in MOMENT}, "t_s": seconds(line, started, epoch_ns)}
        for line in read_lines(run / FILE)
    ]


def seconds(line: Record, started: Record, epoch_ns: int = 0) -> float:
    """When an event was logged, in seconds since the start of the run.

    `started`: the run's epoch.json, or {}; then `epoch_ns` is the start in monotonic ns. Hosts have no
    monotonic time in common: an event that was logged on another host counts by the wall clocks of both.
    """
    if started and line.get("boot_id", started["boot_id"]) != started["boot_id"]:
        return round((int(line["unix_ns"]) - int(started["unix_ns"])) / 1e9, 6)
    return round((int(line["monotonic_ns"]) - int(started.get("epoch_ns", epoch_ns))) / 1e9, 6)


def main() -> int:
    """Log an event in the folder that UNWEFT_OUT names."""
    kind, *devices = sys.argv[1:]
    log_event(Path(os.environ["UNWEFT_OUT"]), kind, devices)
    return 0


if __name__ == "__main__":
    sys.exit(main())
