"""`unweft bench hostile`: one member of a run sends hostile messages; the others must not notice."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from emulation.analysis import forgotten_files, records
from emulation.analysis.records import RunRecords
from emulation.bench.harness import hostile_member
from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.hostile_member import NAMES, Plan, hostile_run

MESSAGES = 100_000
DEVICES, LEAVER, HOSTILE = 5, "d3", "d4"
HONEST = tuple(d for d in (f"d{n}" for n in range(DEVICES)) if d != HOSTILE)
STAY = tuple(d for d in HONEST if d != LEAVER)
MOST_BYTES = 200 << 20  # peak memory of an honest device above that of the same run without the attack
LEAVES, LEAST_ROUNDS, CALM_S = 10, 20, 30.0
MOST_S = 1200.0  # the attack ends then at the latest
TIMEOUT_S = MOST_S + 600  # with the start of the processes on a loaded machine
SCENARIO = f"""
seed = 1
[devices]
count = {DEVICES}
[adapter]
rank = 2
max_devices = 8
[data]
persons = 2
batch = 4
[round]
count = 1000000
local_steps = 1
deadline_s = 2.0
[radio]
rate_Bps = 800_000 # a round takes about a second: the processors are left to the attack
[eval]
every = 0
[[event]]
round = {LEAVES}
kind = "leave"
device = "{LEAVER}"
"""


def run(messages: int = MESSAGES, most_s: float = MOST_S, calm_s: float = CALM_S) -> Findings:
    """One run without the attack, for its memory, and one with it.

    `messages`: to be delivered to the honest devices, in all. `most_s`, `calm_s`: longest time of the attack,
    and time of the run without it.
    """
    findings = Findings(
        f"{messages} hostile messages of one member among {DEVICES} devices", "unweft bench hostile"
    )
    with tempfile.TemporaryDirectory() as folder:
        calm, attacked = Path(folder) / "calm", Path(folder) / "attacked"
        hostile_run(SCENARIO, calm, Plan(most_s=calm_s, ends_run=True), TIMEOUT_S)
        plan = Plan((HOSTILE,), messages, most_s=most_s, ends_run=True)
        hostile_run(SCENARIO, attacked, plan, TIMEOUT_S)
        strays = sorted(p.name for p in Path(folder).iterdir() if p.stem not in ("calm", "attacked"))
        received = hostile_member.received(attacked)
        _add_measures(findings, records.load(calm), records.load(attacked), received, messages)
        findings.measures.append(_count("files outside of the run", "files", len(strays), most=0.0))
    return findings


def _add_measures(
    findings: Findings,
    calm: RunRecords,
    attacked: RunRecords,
    received: dict[str, Counter[str]],
    messages: int,
) -> None:
    by_type = sum(received.values(), Counter[str]())
    grown = tuple(float(_peak(attacked, d) - _peak(calm, d)) / (1 << 20) for d in STAY)
    closed = tuple(float(len(attacked.metrics[d])) for d in STAY)
    holding = forgotten_files.report(attacked)["holding"]
    findings.measures += [
        _count("hostile messages received, all devices", "messages", by_type.total(), least=float(messages)),
        *(_count(f"received by {d}", "messages", received.get(d, Counter()).total()) for d in HONEST),
        *(
            Measure("by type, all devices", name, "messages", (float(by_type[name]),), least=1.0)
            for name in sorted(NAMES.values())
        ),
        _count(
            "honest devices that failed",
            "devices",
            _number(d for d in HONEST if not _ended(attacked, d)),
            most=0.0,
        ),
        Measure(GROUP, "more memory of a device", "MiB", grown, most=MOST_BYTES / (1 << 20)),
        Measure(GROUP, "rounds closed", "rounds", closed, least=float(LEAST_ROUNDS)),
        _count(
            "devices that deleted the leaver",
            "devices",
            _number(d for d in STAY if _deleted(attacked, d)),
            least=float(len(STAY)),
        ),
        _count("files that hold a forgotten block", "files", len(holding), most=0.0),
    ]
    findings.notes += [f"{device} refused: {_refusals(attacked, device)}" for device in STAY]


GROUP = "with the attack"


def _count(
    name: str, unit: str, value: int, least: float | None = None, most: float | None = None
) -> Measure:
    return Measure(GROUP, name, unit, (float(value),), least=least, most=most)


def _number(found: Iterable[object]) -> int:
    return sum(1 for _ in found)


def _ended(run: RunRecords, device: str) -> bool:
    """Whether a device came to its own end."""
    return any(event["event"] == "finished" for event in run.events[device])


def _deleted(run: RunRecords, device: str) -> bool:
    return any(event["event"] == "deleted" and event["peer"] == LEAVER for event in run.events[device])


def _peak(run: RunRecords, device: str) -> int:
    ends = (event for event in run.events[device] if event["event"] == "finished")
    return max((int(str(event["peak_rss_bytes"])) for event in ends), default=0)


def _refusals(run: RunRecords, device: str) -> str:
    """Messages of the hostile device, and of names that are no members, by the reason of the refusal."""
    last = run.metrics[device][-1]["links"] if run.metrics[device] else {}
    refused: Counter[str] = Counter()
    for source in (HOSTILE, "(others)"):
        refused.update(last.get(source, {}).get("dropped_messages", {}))
    return json.dumps(dict(refused.most_common()))
