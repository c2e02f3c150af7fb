"""Whole runs of quick.toml with the virtual clock."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from emulation.bench.clock import repeatable
from tests.support.local_runs import command

EVENTS = (
    '[{round=1, kind="join", device="d3"}, {round=2, kind="crash", device="d2"}, '
    '{round=3, kind="stall", device="d1", duration_s=0.7}, {round=12, kind="return", device="d2"}, '
    '{round=18, kind="partition", groups=[["d0"]]}, {round=20, kind="heal"}]'
)
CHURN = (
    "--set",
    f"event={EVENTS}",
    "--set",
    "adapter.max_devices=8",
    "--set",
    "round.count=30",
    "--set",
    "membership.crash_after_s=1.0",
)


def run(out: Path, *options: str) -> dict[str, Any]:
    """Run it and return the part of summary.json that must be the same in each run."""
    done = subprocess.run(
        command(out, "--clock", "virtual", *options), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return repeatable(json.loads((out / "summary.json").read_text()))
