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

FILE = "churn.jsonl"


def log_event(run: Path, kind: str, devices: Iterable[str], **more: object) -> None:
    """Log an event that is about to happen to devices. `more`: further fields of the event."""
    now_ns = time.monotonic_ns()
    with (run / FILE).open("a", encoding="utf-8") as file:
        for device in devices:
            file.write(json.dumps({"kind": kind, "device": device, "monotonic_ns": now_ns, **more}) + "\n")


def read(run: Path, epoch_ns: int) -> list[Record]:
    """All logged events in order: kind, device, t_s in seconds since the start of the run."""
    lines = read_lines(run / FILE)
    return [
        {**{k: v for k, v in line.items() if k != "monotonic_ns"}, "t_s": _seconds(line, epoch_ns)}
        for line in lines
    ]


def _seconds(line: Record, epoch_ns: int) -> float:
    return round((int(line["monotonic_ns"]) - epoch_ns) / 1e9, 6)


def main() -> int:
    """Log an event in the folder that UNWEFT_OUT names."""
    kind, *devices = sys.argv[1:]
    log_event(Path(os.environ["UNWEFT_OUT"]), kind, devices)
    return 0


if __name__ == "__main__":
    sys.exit(main())
