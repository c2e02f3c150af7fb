"""`unweft bench load`: counts false crash verdicts while all cores train and devices stall for a moment."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from emulation.analysis import records
from emulation.analysis.records import RunRecords
from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.whole_run import whole_run

STALL_S = 1.0  # two probe periods; the shortest suspicion takes 2 s
SCENARIO = """
seed = {seed}
[devices]
count = {count}
[adapter]
rank = 4
max_devices = 32
[topology]
kind = "ring-chords"
chords = 2
[round]
count = {rounds}
local_steps = 5
[eval]
every = 0
[churn]
rate = 0.25
kind = "stall"
stall_s = {stall_s}
"""


def run(devices: Sequence[int] = (12,), minutes: float = 10.0, rounds: int = 120) -> Findings:
    """Repeat runs until they have trained for `minutes` in total."""
    findings = Findings("False deaths under full load", "unweft bench load")
    for count in devices:
        seconds, stalls, suspicions, deaths, busy, seed = 0.0, 0, 0, 0, [], 0
        while seconds < 60 * minutes:
            with tempfile.TemporaryDirectory() as folder:
                before = psutil.cpu_times()
                found = _run(Path(folder), count, rounds, seed)
                busy.append(_busy(before, psutil.cpu_times()))
            seconds += _seconds(found)
            stalls += sum(e["kind"] == "stall" for e in found.injected)
            suspicions += _count(found, "suspected")
            deaths += _count(found, "peer_gone", kind="crash")
            seed += 1
        group = f"{count} devices"
        findings.measures += [
            Measure(group, "training", "minutes", (seconds / 60,)),
            Measure(group, "busy cores", "%", tuple(busy)),
            Measure(group, f"stalls of {STALL_S:g} s", "devices", (float(stalls),)),
            Measure(group, "suspicions, all refuted", "", (float(suspicions),)),
            Measure(group, "false deaths", "devices", (float(deaths),), most=0.0),
        ]
    return findings


def _run(folder: Path, count: int, rounds: int, seed: int) -> RunRecords:
    out = folder / "load"
    whole_run(SCENARIO.format(count=count, rounds=rounds, seed=seed, stall_s=STALL_S), out, timeout_s=1800)
    return records.load(out)


def _seconds(run: RunRecords) -> float:
    lines = [line for d in run.devices for line in run.metrics[d]]
    return max(float(line["t1_s"]) for line in lines) - min(float(line["t0_s"]) for line in lines)


def _count(run: RunRecords, event: str, **more: str) -> int:
    """The number of records of an event, over all devices. No device leaves in these runs."""
    wanted = {"event": event, **more}
    return sum(all(e.get(k) == v for k, v in wanted.items()) for d in run.devices for e in run.events[d])


def _busy(before: Any, after: Any) -> float:
    """Percent of the time of all cores between two psutil.cpu_times() that was not idle."""
    spent = [b - a for a, b in zip(before, after, strict=True)]
    return float(100 * (1 - (after.idle - before.idle) / sum(spent)))
