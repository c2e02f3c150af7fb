"""`unweft bench partition`: two halves that held each other for dead become one again, but for who left."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import fmean

from emulation.analysis import records, summary
from emulation.analysis.invariants import check
from emulation.analysis.records import RunRecords
from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.whole_run import whole_run
from emulation.scenario.events import GONE, OF_THE_NETWORK
from emulation.scenario.loading import dump
from emulation.scenario.schema import Scenario

TIMEOUT_S = 1800
CHANCE = 0.15  # of 40 facts, what may be guessed of somebody's whose contribution is gone


def run(scenario: Scenario) -> Findings:
    """One run, judged by the invariants, by who is known at the end and by what each device then answers."""
    findings = Findings(f"A partition and a leave: {scenario.name}", "unweft bench partition")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "partition"
        whole_run(dump(scenario), out, timeout_s=TIMEOUT_S)
        found, broken = records.load(out), [str(violation) for violation in check(out)]
    told = summary.summarise(found)
    gone = {str(e["device"]) for e in found.injected if e["kind"] in GONE}
    stay = [device for device in found.devices if device not in gone]
    held = [_has(found, device, stay) for device in stay]
    leaver = [e["leaver_accuracy"]["end"] for e in told["events"] if e["kind"] == "leave"]
    ends = [a for row in told["accuracy"]["matrix"] for a in row if a is not None]
    findings.measures += [
        Measure("partition", "lasted", "s", (_lasted(found),)),
        Measure("partition", "verdicts of a survivor on the other half", "devices", _verdicts(found, stay)),
        Measure(
            "the end", "others whom a survivor has, least", "devices", (min(held),), least=len(stay) - 1.0
        ),
        Measure("the end", "survivors' facts, all survivors", "%", (100 * fmean(ends),)),
        Measure("the end", "survivors' facts, the worst", "%", (100 * min(ends),)),
        Measure("the end", "the leaver's facts", "%", tuple(100 * a for a in leaver), most=100 * CHANCE),
        Measure("the end", "violations", "violations", (float(len(broken)),), most=0.0),
    ]
    findings.notes += [f"violated: {one}" for one in broken]
    return findings


def _lasted(run: RunRecords) -> float:
    """Seconds from the partition to its end."""
    first, last = (next(float(e["t_s"]) for e in run.injected if e["kind"] == k) for k in OF_THE_NETWORK)
    return last - first


def _verdicts(run: RunRecords, stay: list[str]) -> tuple[float, ...]:
    """How many others each survivor held for crashed: nobody was."""
    return tuple(
        float(len({e["peer"] for e in run.events[d] if e["event"] == "peer_gone" and e["kind"] == "crash"}))
        for d in stay
    )


def _has(run: RunRecords, device: str, stay: list[str]) -> float:
    """How many of the other survivors are members in a device's last round."""
    return float(len({*run.metrics[device][-1]["members"]} & {*stay} - {device}))
