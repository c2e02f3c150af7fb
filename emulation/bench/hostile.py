"""`unweft bench hostile`: one member of a run sends hostile messages; the others must not notice."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from emulation.analysis import records
from emulation.analysis.records import RunRecords
from emulation.bench.harness import hostile_member
from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.whole_run import environment, whole_run

MESSAGES = 100_000
PER_SECOND = 2000.0
DEVICES, LEAVER, HOSTILE = 5, "d3", "d4"
MOST_BYTES = 200 << 20  # peak memory of an honest device above that of the same run without the attack
TIMEOUT_S = 3000
SCENARIO = """
seed = 1
plugins = ["{plugin}"]
[devices]
count = {count}
[adapter]
rank = 2
max_devices = 8
[data]
persons = 2
batch = 4
[round]
count = {rounds}
local_steps = 1
deadline_s = 2.0
[eval]
every = 0
[[event]]
round = {leaves}
kind = "leave"
device = "{leaver}"
"""


def run(messages: int = MESSAGES, rounds: int = 800) -> Findings:
    """One run without the attack, for its memory, and one with it."""
    findings = Findings(f"{messages} hostile messages of one member among {DEVICES}", "unweft bench hostile")
    with tempfile.TemporaryDirectory() as folder:
        calm = _run(Path(folder) / "calm", 0, 40)
        attacked = _run(Path(folder) / "attacked", messages, rounds)
        strays = sorted(p.name for p in Path(folder).iterdir() if p.stem not in ("calm", "attacked"))
        sent = json.loads(
            (Path(folder) / "attacked" / "devices" / HOSTILE / hostile_member.FILE).read_text(
                encoding="utf-8"
            )
        )["sent"]
    honest = [f"d{n}" for n in range(DEVICES) if f"d{n}" != HOSTILE]
    stay = [device for device in honest if device != LEAVER]
    grown = [float(_peak(attacked, d) - _peak(calm, d)) / (1 << 20) for d in stay]
    deleted = sum(
        any(e["event"] == "deleted" and e["peer"] == LEAVER for e in attacked.events[d]) for d in stay
    )
    closed = [float(len(attacked.metrics[d])) for d in stay]
    failed = [d for d in stay if not _finished(attacked, d)]
    group = "with the attack"
    findings.measures += [
        Measure(group, "messages sent", "messages", (float(sent),), least=0.9 * messages),
        Measure(group, "honest devices that failed", "devices", (float(len(failed)),), most=0.0),
        Measure(group, "files outside of the run", "files", (float(len(strays)),), most=0.0),
        Measure(group, "more memory", "MiB", tuple(grown), most=MOST_BYTES / (1 << 20)),
        Measure(group, "rounds closed", "rounds", tuple(closed), least=rounds / 4),
        Measure(
            group, "devices that deleted the leaver", "devices", (float(deleted),), least=float(len(stay))
        ),
    ]
    findings.notes += [f"{device}: {_refusals(attacked, device)}" for device in stay]
    return findings


def _run(out: Path, messages: int, rounds: int) -> RunRecords:
    scenario = SCENARIO.format(
        plugin=hostile_member.MODULE, count=DEVICES, rounds=rounds, leaves=rounds // 10, leaver=LEAVER
    )
    plan = hostile_member.attack([HOSTILE] if messages else [], messages, PER_SECOND)
    with environment(hostile_member.VARIABLE, plan):
        whole_run(scenario, out, timeout_s=TIMEOUT_S)
    return records.load(out)


def _ended(run: RunRecords, device: str) -> list[dict[str, object]]:
    return [event for event in run.events[device] if event["event"] == "finished"]


def _finished(run: RunRecords, device: str) -> bool:
    return any("finished" in str(event["reason"]) for event in _ended(run, device))


def _peak(run: RunRecords, device: str) -> int:
    return max((int(str(event["peak_rss_bytes"])) for event in _ended(run, device)), default=0)


def _refusals(run: RunRecords, device: str) -> str:
    return ", ".join(json.dumps(event["security_events"]) for event in _ended(run, device))
