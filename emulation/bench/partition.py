"""`unweft bench partition`: two halves evict each other in a partition and merge again after it."""

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
CHANCE = 0.15  # largest accuracy by chance on the 40 facts of a deleted contribution


def run(scenario: Scenario) -> Findings:
    """One run. Checks the invariants, the members at the end and the accuracies at the end."""
    findings = Findings(f"A partition and a leave: {scenario.name}", "unweft bench partition")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "partition"
        whole_run(dump(scenario), out, timeout_s=TIMEOUT_S)
        recorded, broken = records.load(out), [str(violation) for violation in check(out)]
    totals = summary.summarise(recorded)
    gone = {str(e["device"]) for e in recorded.injected if e["kind"] in GONE}
    stay = [device for device in recorded.devices if device not in gone]
    held = [_survivors_known(recorded, device, stay) for device in stay]
    leaver = [e["leaver_accuracy"]["end"] for e in totals["events"] if e["kind"] == "leave"]
    ends = [a for row in totals["accuracy"]["matrix"] for a in row if a is not None]
    findings.measures += [
        Measure("partition", "lasted", "s", (_partition_s(recorded),)),
        Measure(
            "partition", "verdicts of a survivor on the other half", "devices", _verdicts(recorded, stay)
        ),
        Measure(
            "the end",
            "fewest others known to a survivor",
            "devices",
            (min(held),),
            least=len(stay) - 1.0,
        ),
        Measure("the end", "survivors' facts, all survivors", "%", (100 * fmean(ends),)),
        Measure("the end", "survivors' facts, the worst", "%", (100 * min(ends),)),
        Measure("the end", "the leaver's facts", "%", tuple(100 * a for a in leaver), most=100 * CHANCE),
        Measure("the end", "violations", "violations", (float(len(broken)),), most=0.0),
    ]
    findings.notes += [f"violated: {one}" for one in broken]
    return findings


def _partition_s(run: RunRecords) -> float:
    """The duration of the partition in seconds."""
    first, last = (next(float(e["t_s"]) for e in run.injected if e["kind"] == k) for k in OF_THE_NETWORK)
    return last - first


def _verdicts(run: RunRecords, stay: list[str]) -> tuple[float, ...]:
    """For each survivor, the number of its crash verdicts. No device crashed."""
    return tuple(
        float(len({e["peer"] for e in run.events[d] if e["event"] == "peer_gone" and e["kind"] == "crash"}))
        for d in stay
    )


def _survivors_known(run: RunRecords, device: str, stay: list[str]) -> float:
    """The number of other survivors among the members in the last round of a device."""
    return float(len({*run.metrics[device][-1]["members"]} & {*stay} - {device}))
