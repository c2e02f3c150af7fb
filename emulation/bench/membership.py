"""`unweft bench membership`: how soon real devices agree on who is here, and find who has crashed."""

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
class Seen:
    """Over all starts of one size, in seconds; deaths: live devices that somebody took for dead."""

    agreed_s: list[float] = field(default_factory=list)
    suspected_s: list[float] = field(default_factory=list)
    confirmed_s: list[float] = field(default_factory=list)
    deaths: int = 0


def run(devices: Sequence[int] = (8, 16), starts: int = 10, rounds: int = 60, crash: int = 20) -> Findings:
    """Devices train all the while. Agreement counts from when the last of them was up."""
    findings = Findings("Membership of devices that train", "unweft bench membership")
    for count in devices:
        seen = Seen()
        for _ in range(starts):
            with tempfile.TemporaryDirectory() as folder:
                _look(_run(Path(folder), count, rounds, crash), seen)
        group = f"{count} devices"
        p95 = (float(np.percentile(seen.agreed_s, 95)),) if seen.agreed_s else ()
        findings.measures += [
            Measure(group, f"agreed after the last was up, p95 of {starts}", "s", p95, most=1.0),
            Measure(group, "a crash is suspected", "s", tuple(seen.suspected_s)),
            Measure(group, "known to all", "s", tuple(seen.confirmed_s), most=5.0),
            Measure(group, "false deaths", "devices", (float(seen.deaths),), most=0.0),
        ]
    return findings


def _run(folder: Path, count: int, rounds: int, crash: int) -> RunRecords:
    out = folder / "membership"
    whole_run(SCENARIO.format(count=count, rounds=rounds, crash=crash), out, timeout_s=900)
    return records.load(out)


def _look(run: RunRecords, seen: Seen) -> None:
    up = max(float(e["t_s"]) for d in run.devices for e in run.events[d] if e["event"] == "started")
    knew = [_knew_all(run, device) for device in run.devices]
    seen.agreed_s.append(max(0.0, max(knew) - up))
    crashed = next(float(e["t_s"]) for e in run.injected if e["kind"] == "crash")
    survivors = [device for device in run.devices if device != CRASHED]
    suspected = [t for d in survivors for t in _times(run, d, "suspected", crashed)]
    gone = [min(_times(run, d, "peer_gone", crashed), default=float("inf")) for d in survivors]
    seen.suspected_s += [min(suspected) - crashed] if suspected else []
    seen.confirmed_s.append(max(gone) - crashed)
    seen.deaths += sum(
        e["event"] == "peer_gone" and e["kind"] == "crash" and e["peer"] != CRASHED
        for d in run.devices
        for e in run.events[d]
    )


def _knew_all(run: RunRecords, device: str) -> float:
    """When the last of the others became known to a device."""
    others = {e["peer"]: float(e["t_s"]) for e in reversed(run.events[device]) if e["event"] == "peer_joined"}
    return max(others.values()) if len(others) == len(run.devices) - 1 else float("inf")


def _times(run: RunRecords, device: str, event: str, after_s: float) -> list[float]:
    """When a device noted something of the crashed one."""
    return [
        float(e["t_s"])
        for e in run.events[device]
        if e["event"] == event and e.get("peer") == CRASHED and float(e["t_s"]) >= after_s
    ]
