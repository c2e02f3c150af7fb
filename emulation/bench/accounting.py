"""`unweft bench accounting`: compares the byte counters of a whole run with those of the kernel."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.namespace import Namespace, NoNamespace, Traffic, namespace
from emulation.bench.harness.whole_run import TCP_RUN, whole_run

HEADERS = 14 + 20 + 32  # bytes in each packet: Ethernet, IPv4, TCP with its timestamp option
SCENARIO = """
[devices]
count = 4
[data]
persons = 2
batch = 8
[adapter]
rank = 8
max_devices = 8
[keys]
enabled = {keys}
[round]
count = {rounds}
local_steps = 1
[eval]
every = 1000
"""


def run(rounds: int = 40) -> Findings:
    """Measure the bytes on all links of a run and on the loopback of its namespace, with keys and without."""
    findings = Findings(
        "Accounting against the kernel: a whole run in its own network namespace", "unweft bench accounting"
    )
    try:
        for keys in (True, False):
            with namespace() as inside, tempfile.TemporaryDirectory() as folder:
                before = inside.traffic()
                sent = _run(inside, Path(folder), rounds, keys)
                _compare(
                    findings, "with keys" if keys else "in the clear", sent, inside.traffic().since(before)
                )
    except NoNamespace as error:
        findings.notes.append(f"not measured: {error}")
    return findings


def _run(inside: Namespace, folder: Path, rounds: int, keys: bool) -> int:
    """The bytes that the devices of a run report as sent."""
    out = folder / "accounting"
    scenario = SCENARIO.format(rounds=rounds, keys=str(keys).lower())
    whole_run(scenario, out, timeout_s=300, within=inside.command, code=TCP_RUN)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return sum(int(link["sent_bytes"]) for link in summary["links"])


def _compare(findings: Findings, group: str, sent: int, kernel: Traffic) -> None:
    headers = kernel.packets * HEADERS
    payload = kernel.bytes - headers
    findings.measures += [
        Measure(group, "interface, bytes received", "MB", (kernel.bytes / 1e6,)),
        Measure(group, f"of these, headers ({HEADERS} bytes in each packet)", "MB", (headers / 1e6,)),
        Measure(group, "TCP payload", "MB", (payload / 1e6,)),
        Measure(group, "unweft, all links", "MB", (sent / 1e6,), "TCP payload", 0.97, 1.03),
    ]
