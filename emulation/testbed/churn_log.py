"""What `unweft churn` did to a run's devices, noted in the run's folder: no device knows when it was killed.

`python -m emulation.testbed.churn_log KIND DEVICE...` notes it now. `unweft churn` runs that in a container
the testbed, where the folder is.
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


def note(run: Path, kind: str, devices: Iterable[str], **more: object) -> None:
    """Something is about to happen to devices."""
    now_ns = time.monotonic_ns()
    with (run / FILE).open("a", encoding="utf-8") as file:
        for device in devices:
            file.write(json.dumps({"kind": kind, "device": device, "monotonic_ns": now_ns, **more}) + "\n")


def read(run: Path, epoch_ns: int) -> list[Record]:
    """All notes, in order, in seconds of the run's clock: kind, device, t_s."""
    noted = read_lines(run / FILE)
    return [
        {**{k: v for k, v in line.items() if k != "monotonic_ns"}, "t_s": _seconds(line, epoch_ns)}
        for line in noted
    ]


def _seconds(line: Record, epoch_ns: int) -> float:
    return round((int(line["monotonic_ns"]) - epoch_ns) / 1e9, 6)


def main() -> int:
    """Notes an event in the folder of UNWEFT_OUT."""
    kind, *devices = sys.argv[1:]
    note(Path(os.environ["UNWEFT_OUT"]), kind, devices)
    return 0


if __name__ == "__main__":
    sys.exit(main())
