"""`unweft bench membership`: the times until real devices agree on the members and detect a crash."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from emulation.analysis import records
from emulation.analysis.records import RunRecords
from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.whole_run import whole_run

CRASHED = "d1"
SCENARIO = """
[devices]
count = {count}
[data]
persons = 1
batch = 4
[adapter]
rank = 2
max_devices = 64
[topology]
kind = "ring-chords"
chords = 2
[round]
count = {rounds}
local_steps = 1
deadline_s = 2.0
[correction]
rounds = 2
[eval]
every = 1000
[[event]]
round = {crash}
kind = "crash"
device = "d1"
"""


@dataclass
class DetectionTimes:
    """Times in seconds over all starts of one size. deaths: crash verdicts on live devices."""

    agreed_s: list[float] = field(default_factory=list)
    suspected_s: list[float] = field(default_factory=list)
    confirmed_s: list[float] = field(default_factory=list)
    deaths: int = 0


def run(devices: Sequence[int] = (8, 16), starts: int = 10, rounds: int = 60, crash: int = 20) -> Findings:
    """Measure devices that train. The time to agreement starts with the last started device."""
    findings = Findings("Membership of devices that train", "unweft bench membership")
    for count in devices:
        times = DetectionTimes()
        for _ in range(starts):
            with tempfile.TemporaryDirectory() as folder:
                _add_run(_run(Path(folder), count, rounds, crash), times)
        group = f"{count} devices"
        p95 = (float(np.percentile(times.agreed_s, 95)),) if times.agreed_s else ()
        findings.measures += [
            Measure(group, f"agreed after the last was up, p95 of {starts}", "s", p95, most=1.0),
            Measure(group, "a crash is suspected", "s", tuple(times.suspected_s)),
            Measure(group, "known to all", "s", tuple(times.confirmed_s), most=5.0),
            Measure(group, "false deaths", "devices", (float(times.deaths),), most=0.0),
        ]
    return findings


def _run(folder: Path, count: int, rounds: int, crash: int) -> RunRecords:
    out = folder / "membership"
    whole_run(SCENARIO.format(count=count, rounds=rounds, crash=crash), out, timeout_s=900)
    return records.load(out)


def _add_run(run: RunRecords, times: DetectionTimes) -> None:
    up = max(float(e["t_s"]) for d in run.devices for e in run.events[d] if e["event"] == "started")
    knew = [_knew_all(run, device) for device in run.devices]
    times.agreed_s.append(max(0.0, max(knew) - up))
    crashed = next(float(e["t_s"]) for e in run.injected if e["kind"] == "crash")
    survivors = [device for device in run.devices if device != CRASHED]
    suspected = [t for d in survivors for t in _times(run, d, "suspected", crashed)]
    gone = [min(_times(run, d, "peer_gone", crashed), default=float("inf")) for d in survivors]
    times.suspected_s += [min(suspected) - crashed] if suspected else []
    times.confirmed_s.append(max(gone) - crashed)
    times.deaths += sum(
        e["event"] == "peer_gone" and e["kind"] == "crash" and e["peer"] != CRASHED
        for d in run.devices
        for e in run.events[d]
    )


def _knew_all(run: RunRecords, device: str) -> float:
    """The time at which a device knew all others; infinite if it never did."""
    others = {e["peer"]: float(e["t_s"]) for e in reversed(run.events[device]) if e["event"] == "peer_joined"}
    return max(others.values()) if len(others) == len(run.devices) - 1 else float("inf")


def _times(run: RunRecords, device: str, event: str, after_s: float) -> list[float]:
    """The times of the records of one event of the crashed device, after a time."""
    return [
        float(e["t_s"])
        for e in run.events[device]
        if e["event"] == event and e.get("peer") == CRASHED and float(e["t_s"]) >= after_s
    ]
