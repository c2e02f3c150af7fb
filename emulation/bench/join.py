"""`unweft bench join`: the time from the start of a process to its first round with mixing."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from emulation.analysis import records, summary
from emulation.analysis.records import Record, RunRecords
from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.whole_run import RUN, whole_run
from emulation.launch.ports import free_ports
from emulation.testbed import epoch

JOIN_EVERY, STAYS = 30, 15  # rounds from one join to the next, and from a join to the retirement
MIX_S = 1.5  # target for a forked newcomer, without the transfer
COLD_S = 120.0  # longest wait for cold devices
ENDING_S = 30.0
SCENARIO = """
[devices]
count = {count}
[data]
persons = 2
batch = 8
[adapter]
rank = 2
max_devices = 16
[topology]
kind = "full"
[round]
count = {rounds}
local_steps = 1
[radio]
rate_Bps = 400_000 # sending dominates, so that a newcomer does not wait for processors
[eval]
every = 0
"""
JOIN = """
[[event]]
round = {round}
kind = "join"
device = "{device}"
[[event]]
round = {end}
kind = "retire"
device = "{device}"
"""


def run(count: int = 4, joins: int = 5, cold: int = 3) -> Findings:
    """Measure `joins` newcomers forked by the launcher, then `cold` ones started by `unweft device`."""
    findings = Findings("Joining", "unweft bench join")
    with tempfile.TemporaryDirectory() as folder:
        forked = _forked(Path(folder) / "join", count, joins)
    with tempfile.TemporaryDirectory() as folder:
        started = list(_cold(Path(folder), count, cold)) if cold else []
    for group, took, most in (
        ("forked by the launcher", forked, MIX_S),
        ("cold, unweft device", started, None),
    ):
        beside = tuple(total - transfer for total, transfer in took)
        findings.measures += [
            Measure(group, "process start to first mixed round", "s", tuple(total for total, _ in took)),
            Measure(
                group, "transfer of its state at the radio rate", "s", tuple(transfer for _, transfer in took)
            ),
            Measure(group, "the rest", "s", beside, most=most),
        ]
    findings.notes.append(f"{count} devices train during the joins")
    return findings


def _forked(out: Path, count: int, joins: int) -> list[tuple[float, float]]:
    rounds = [JOIN_EVERY * (i + 1) for i in range(joins)]
    events = [JOIN.format(round=r, end=r + STAYS, device=f"d{count + i}") for i, r in enumerate(rounds)]
    whole_run(
        SCENARIO.format(count=count, rounds=JOIN_EVERY * (joins + 1)) + "".join(events), out, timeout_s=900
    )
    run = records.load(out)
    return [_took(run, str(e["device"]), float(e["t_s"])) for e in run.injected if e["kind"] == "join"]


def _took(run: RunRecords, device: str, start_s: float) -> tuple[float, float]:
    """Seconds to the end of the first mixed round, and seconds that the transfer of the state takes.

    The senders send in parallel, so that the largest share counts, at the rate of the radio.
    """
    mixed = next((line for line in run.metrics[device] if line.get("weights")), None)
    if mixed is None:
        raise RuntimeError(f"{device} ended before it mixed with another device")
    links = summary.summarise(run)["links"]
    size = max(link["bytes_by_cause"]["transfer"] for link in links if link["dst"] == device)
    return float(mixed["t1_s"]) - start_s, size / run.scenario.radio.rate_Bps


def _cold(folder: Path, count: int, cold: int) -> Iterator[tuple[float, float]]:
    """Start `count` devices, then the measured devices one after the other."""
    scenario, out = folder / "join.toml", folder / "cold"
    scenario.write_text(SCENARIO.format(count=count, rounds=100_000), encoding="utf-8")
    ports = free_ports(count + cold)
    with _processes() as processes:
        for port in ports[:count]:
            processes.append(_start(scenario, out, port, ports[0]))
        _wait(lambda: len(_closed_rounds(out)) >= count, processes)
        for number, port in enumerate(ports[count:], start=count):
            start_ns = time.monotonic_ns()
            with _processes() as joiner:
                joiner.append(_start(scenario, out, port, ports[0]))
                _wait(partial(_mixes, out, f"d{number}"), [*processes, *joiner])
                began_ns = epoch.read(out) or 0
                yield _took(records.load(out), f"d{number}", (start_ns - began_ns) / 1e9)


def _start(scenario: Path, out: Path, port: int, seed: int) -> subprocess.Popen[bytes]:
    where = ["--listen", f"tcp://127.0.0.1:{port}", "--seeds", f"tcp://127.0.0.1:{seed}"]
    shared = ["--scenario", str(scenario), "--out", str(out), "--keys", str(out.with_name("keys"))]
    log = out.with_name(f"{port}.log").open("wb")
    with log:
        return subprocess.Popen(
            [sys.executable, "-c", RUN, "device", *where, *shared], stdout=log, stderr=subprocess.STDOUT
        )


def _wait(done: Callable[[], bool], processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until `done`. Raises RuntimeError if a process ends, or after COLD_S."""
    until = time.monotonic() + COLD_S
    while not done():
        if any(process.poll() is not None for process in processes):
            raise RuntimeError("a device ended during the measurement")
        if time.monotonic() > until:
            raise RuntimeError(f"the devices did not start within {COLD_S:g} s")
        time.sleep(0.1)


def _closed_rounds(out: Path) -> dict[str, list[Record]]:
    """Device -> its metrics, for devices with at least one closed round."""
    found = {p.parent.name: records.read_lines(p) for p in (out / "devices").glob("*/metrics.jsonl")}
    return {device: lines for device, lines in found.items() if lines}


def _mixes(out: Path, device: str) -> bool:
    return any(line.get("weights") for line in _closed_rounds(out).get(device, []))


@contextmanager
def _processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """A list of processes that are interrupted at the end of the block, and killed if they do not end."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        yield processes
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
        until = time.monotonic() + ENDING_S
        for process in processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
