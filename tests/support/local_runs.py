"""Whole runs of quick.toml in a process of their own."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.support.cli import QUICK


def command(out: Path, *options: str) -> list[str]:
    """The command line of a run into `out`."""
    return [str(Path(sys.executable).with_name("unweft")), "run", QUICK, "--out", str(out), *options]


def started(out: Path, device: str) -> int:
    """The pid of a device once it has closed a round."""
    metrics = out / "devices" / device / "metrics.jsonl"
    deadline = time.monotonic() + 150
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline, "no round was closed"
        time.sleep(0.05)
    first = (out / "devices" / device / "events.jsonl").read_text().splitlines()[0]
    return int(json.loads(first)["pid"])
