"""Compares unweft's shaper with the kernel's tbf at the same rate, in the same containers.

python deploy/tbf_check.py RATE_Bps, as root on Linux: it enters the containers' networks with nsenter.

It runs three testbeds: shaped by unweft; by the kernel; by unweft with the kernel behind it. The third checks
that the output of unweft conforms to the bucket: then the kernel delays and drops nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

from emulation.testbed.docker import Container, Project

ROOT = Path(__file__).parents[1]
DEVICES = 3
SETTINGS = (  # many bytes, little compute
    "round.count=100000 round.local_steps=1 data.persons=2 data.batch=4 radio.codec=fp32 "
    "radio.budget_bytes=100000000 radio.latency_s=0.001 "
    # Behind a plain bucket a ping waits as long as data. Long timeouts avoid false crash verdicts.
    "membership.ack_s=30.0 membership.probe_s=60.0 membership.crash_after_s=600.0"
)
UNSHAPED_Bps = 50_000_000
BURST_BYTES = 2 * (1 << 16) + 4096  # two frames, the depth of unweft's bucket
HEADERS = 1 + 66 / 1448  # headers of Ethernet, IPv4 and TCP for a full segment; the kernel counts them
SECONDS = 90.0
READ = (
    "import json, os; from pathlib import Path; from peers.runtime.health import *;"
    "s = Path('/sys/class/net/eth0/statistics');"
    "print(json.dumps([ask(os.environ[VARIABLE]), int((s / 'tx_bytes').read_text())]))"
)


def main() -> None:
    rate_Bps = int(sys.argv[1]) if len(sys.argv) > 1 else 250_000
    print(f"{DEVICES} devices, {rate_Bps} B/s each, {SECONDS:.0f} s")
    print("| shaped by | on the wire, B/s | rounds/s | latency p50 / p95 / p99, s | kernel: late, dropped |")
    print("|---|---|---|---|---|")
    print(row("unweft", measured(rate_Bps, kernel_Bps=None)))
    print(row("unweft, then the kernel", measured(rate_Bps, kernel_Bps=HEADERS * rate_Bps)))
    print(row("the kernel", measured(UNSHAPED_Bps, kernel_Bps=HEADERS * rate_Bps)))


def measured(rate_Bps: int, kernel_Bps: float | None) -> dict[str, float]:
    """Run one testbed and return its rates, latencies and kernel counts."""
    variables = {
        "UNWEFT_DEVICES": str(DEVICES),
        "UNWEFT_SET": f"{SETTINGS} radio.rate_Bps={rate_Bps}",
        "UNWEFT_SUBNET": "10.93.251.0/24",
    }
    project = Project("unweft-tbf", (ROOT / "docker-compose.yml",), variables)
    try:
        project.compose("up", "-d", "device")
        until_round(project, 2)
        for container in project.containers():
            if kernel_Bps is not None:
                shape(project, container, kernel_Bps)
        until_round(project, 5)
        before, since = look(project), time.monotonic()
        time.sleep(SECONDS)
        after, seconds = look(project), time.monotonic() - since
        return compared(before, after, seconds) | overdone(project)
    finally:
        project.compose("down", "-v", "--timeout", "2")


def shape(project: Project, container: Container, rate_Bps: float) -> None:
    """Limit the rate of a container with the kernel's tbf."""
    rate, burst = f"{8 * rate_Bps:.0f}bit", str(BURST_BYTES)
    tbf = ("tbf", "rate", rate, "burst", burst, "limit", "16mb")
    tc(project, container, "qdisc", "replace", "dev", "eth0", "root", *tbf)


def tc(project: Project, container: Container, *words: str) -> str:
    """Run tc (traffic control) in a container's network. Returns its output."""
    pid = project.docker("inspect", "--format", "{{.State.Pid}}", container.id).strip()
    command = ["nsenter", "-t", pid, "-n", "tc", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def overdone(project: Project) -> dict[str, float]:
    """Sums over all devices of tbf's counts: packets, delayed packets (`overlimits`) and dropped packets."""
    found = [
        json.loads(tc(project, c, "-s", "-j", "qdisc", "show", "dev", "eth0")) for c in project.containers()
    ]
    kernel = [q for queues in found for q in queues if q["kind"] == "tbf"]
    return {name: sum(q[name] for q in kernel) for name in ("packets", "overlimits", "drops")}


def look(project: Project) -> list[tuple[dict[str, Any], int]]:
    """The status and the sent bytes of each device."""
    said = [project.docker("exec", c.id, "python", "-c", READ) for c in project.containers()]
    return [(status, sent) for status, sent in map(json.loads, said)]


def until_round(project: Project, number: int) -> None:
    """Wait until all devices have closed this round."""
    while True:
        try:
            if min(status["round"] for status, _ in look(project)) >= number:
                return
        except Exception:  # the device has not started yet
            pass
        time.sleep(1)


def compared(before: list[tuple[Any, int]], after: list[tuple[Any, int]], seconds: float) -> dict[str, float]:
    """Rates and latencies between two calls of `look`, `seconds` apart."""
    sent = [b - a for (_, a), (_, b) in zip(before, after, strict=True)]
    rounds = [b["round"] - a["round"] for (a, _), (b, _) in zip(before, after, strict=True)]
    links = [
        link["latency_s"] for status, _ in after for link in status["links"].values() if link["latency_s"]
    ]
    found = {name: median(link[name] for link in links) for name in ("p50", "p95", "p99")}
    return {**found, "wire_Bps": mean(sent) / seconds, "rounds_ps": mean(rounds) / seconds}


def row(name: str, found: dict[str, float]) -> str:
    """One row of the printed table."""
    latency = " / ".join(f"{found[p]:.3f}" for p in ("p50", "p95", "p99"))
    kernel = f"{found['overlimits']:,.0f}, {found['drops']:,.0f} of {found['packets']:,.0f} packets"
    return (
        f"| {name} | {found['wire_Bps']:,.0f} | {found['rounds_ps']:.2f} | {latency} "
        f"| {kernel if found['packets'] else '–'} |"
    )


if __name__ == "__main__":
    main()
