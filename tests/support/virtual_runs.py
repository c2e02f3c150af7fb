"""Whole runs in virtual time, which are equal whatever the load of the machine is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from emulation.bench.clock import repeatable
from emulation.commands.report import write_summary
from emulation.launch import one_process
from emulation.scenario.loading import load
from tests.support.command_line import QUICK, quick_run

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


def virtual_run(out: Path, *options: str) -> dict[str, Any]:
    """Run scenarios/quick.toml in virtual time; returns the part of the summary that repeats."""
    command = quick_run(out, "--clock", "virtual", *options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return repeatable(json.loads((out / "summary.json").read_text()))


def run_in_one_process(out: Path, *options: str) -> dict[str, Any]:
    """The run of `virtual_run` with all devices in this process."""
    sets = [option for option in options if option != "--set"]
    one_process.run(load(Path(QUICK), sets, None, "virtual"), out)
    write_summary(out)
    return repeatable(json.loads((out / "summary.json").read_text()))
