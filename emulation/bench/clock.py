"""`unweft bench clock`: one run in real time, three in virtual time, one of them under load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.whole_run import whole_run
from emulation.scenario.loading import dump
from emulation.scenario.schema import Scenario

MACHINE_KEYS = ("pid", "peak_rss_bytes", "peak_pss_bytes", "train_cpu_s", "security_events")


def run(scenario: Scenario) -> Findings:
    """Compare hashes, bytes and latencies of the virtual runs, and the wall time of both clocks."""
    findings = Findings(f"Clocks: {scenario.name}", "unweft bench clock")
    with tempfile.TemporaryDirectory() as folder:
        seconds, summaries = {}, {}
        for name, clock, busy in (
            ("real", "real", False),
            ("virtual", "virtual", False),
            ("virtual again", "virtual", False),
            ("virtual, both cores busy", "virtual", True),
        ):
            out = Path(folder) / name.replace(" ", "-")
            with load() if busy else nullcontext():
                seconds[name], summaries[name] = _timed(scenario, out, clock)
    for name, taken in seconds.items():
        most = 1.0 if name == "virtual" else None
        findings.measures.append(Measure("wall time", name, "s", (taken,), "real", most=most))
    first = summaries["virtual"]
    findings.measures.append(Measure("virtual", "emulated time", "s", (emulated_s(first),)))
    for name in ("virtual again", "virtual, both cores busy"):
        for what in ("devices", "links", "events", "rounds"):
            same = float(summaries[name][what] == first[what])
            findings.measures.append(Measure(name, f"{what} the same", "1 = yes", (same,), least=1.0))
    return findings


def repeatable(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without the keys that depend on the machine: process ids, memory, processor time."""
    devices = [{k: v for k, v in d.items() if k not in MACHINE_KEYS} for d in summary["devices"]]
    return {**summary, "devices": devices, "evaluator": None}


def emulated_s(summary: dict[str, Any]) -> float:
    """The sum of the mean round durations, in seconds of the clock of the run."""
    return sum(float(entry["seconds"]) for entry in summary["rounds"])


def _timed(scenario: Scenario, out: Path, clock: str) -> tuple[float, dict[str, Any]]:
    start = time.monotonic()
    whole_run(dump(scenario), out, "--clock", clock)
    taken = time.monotonic() - start
    return taken, repeatable(json.loads((out / "summary.json").read_text(encoding="utf-8")))


@contextmanager
def load() -> Iterator[None]:
    """Start one busy process for each processor, and end them when the block is left."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
        for process in busy:
            process.wait()
