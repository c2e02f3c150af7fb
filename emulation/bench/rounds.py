"""`unweft bench rounds`: rounds/s, CPU and memory of real devices, beside a plain exchange and bare pyzmq.

D-PSGD on a 4-regular graph: each device makes one small SGD step, exchanges one matrix with its neighbours
and averages. Devices check, count and record as in a run, over the socket files of a launcher. The plain
reference pickles. The upper bound is pyzmq without copies and checks. Both use TCP. At the end of each
measurement one device is killed to measure the delay. Other work on the machine changes rounds/s more than
the CPU time of a round.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil

from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.fleet import DEADLINE_S, OFFSETS, Fleet, fleet
from emulation.bench.harness.plain import PlainDevice
from emulation.bench.harness.processes import Crew, crew, process_cpu_s, tree_pss_bytes
from emulation.bench.harness.sgd import PAYLOAD_BYTES
from transport.security.keys import NetworkKeys

DEVICES = (8, 16, 32)
WINDOW_S, SLICES = 8.0, 4  # measured time, and the number of its slices, which give the spread
WARM_ROUNDS, START_S = 3, 120.0
WARM_S, AFTER_S = 1.5, 2.0  # for the references: before the window, and after the kill
WATCHED_S = DEADLINE_S + 4.0  # for the devices: after the kill
PLAIN, BARE = "plain: pickle over ROUTER/DEALER", "bare zero-copy pyzmq"


@dataclass
class Result:
    """One contender at one size: rounds/s in each slice, CPU, PSS, and the delay after a kill."""

    rates: list[float] = field(default_factory=list)
    cpu_s: float = 0.0  # of one device in one round, all its threads
    pss_bytes: int = 0
    after_kill: int = 0  # rounds that the slowest survivor closed after the kill
    lost_s: float | None = None  # longest gap between rounds of a survivor after the kill, minus the median


def run(
    devices: Sequence[int] = DEVICES, window_s: float = WINDOW_S, keys: bool = True, bare: bool = True
) -> Findings:
    """keys, bare: whether to measure devices with keys and bare pyzmq too."""
    title = f"D-PSGD, {PAYLOAD_BYTES} bytes to each of 4 neighbours a round, one SGD step, unshaped"
    findings = Findings(title, "unweft bench rounds")
    for count in devices:
        found = {PLAIN: _reference(count, window_s, zero_copy=False)}
        found["unweft"] = _devices(count, window_s, None)
        if bare:
            found[BARE] = _reference(count, window_s, zero_copy=True)
        if keys:
            found["unweft, keys"] = _devices(count, window_s, NetworkKeys.generate())
        _add(findings, count, found)
    findings.notes += [
        "PSS: all child processes; the plain reference is spawned, and each process imports torch",
        f"lost to a kill: longest gap between two rounds of a survivor, minus the median gap; a deadline is "
        f"{DEADLINE_S:g} s",
    ]
    return findings


def _add(findings: Findings, count: int, found: dict[str, Result]) -> None:
    group = f"{count} devices"
    asked = {"unweft": 1.3}
    for name, one in found.items():
        against = None if name == PLAIN else PLAIN
        rates = tuple(one.rates)
        findings.measures.append(Measure(group, name, "rounds/s", rates, against, asked.get(name)))
    for name, one in found.items():
        against = None if name == PLAIN else f"CPU of a round, {PLAIN}"
        findings.measures.append(Measure(group, f"CPU of a round, {name}", "ms", (1e3 * one.cpu_s,), against))
    memory = (("PSS, plain", PLAIN), ("PSS, unweft", "unweft"))
    for name, of in memory:
        ours = of == "unweft"
        samples = (found[of].pss_bytes / 1e9,)
        against, most = ("PSS, plain", 0.5) if ours else (None, None)
        findings.measures.append(Measure(group, name, "GB", samples, against, most=most))
    for name in ("unweft", "unweft, keys"):
        lost = found[name].lost_s if name in found else None
        if lost is not None:
            label = f"lost to a kill, {name}"
            findings.measures.append(Measure(group, label, "deadlines", (lost / DEADLINE_S,), most=1.0))
    frozen = f"rounds within {AFTER_S:g} s after a kill, plain"
    findings.measures.append(Measure(group, frozen, "rounds", (float(found[PLAIN].after_kill),)))


# -- the references ------------------------------------------------------------------------------------------
def _reference(count: int, window_s: float, zero_copy: bool) -> Result:
    preload = [PlainDevice.__module__] if zero_copy else None
    with crew(preload) as all_:
        return _run_reference(all_, count, window_s, zero_copy)


def _run_reference(all_: Crew, count: int, window_s: float, zero_copy: bool) -> Result:
    devices = [all_.remote(PlainDevice, f"d{n}", zero_copy) for n in range(count)]
    for device in devices:
        device.begin("bind")
    addresses = [device.result(START_S) for device in devices]
    for n, device in enumerate(devices):
        around = {(n + sign * k) % count for k in OFFSETS for sign in (-1, 1)} - {n}
        device.call("connect", [addresses[other] for other in sorted(around)])
    start_ns = time.monotonic_ns() + int(WARM_S * 1e9)
    end_ns = start_ns + int(window_s * 1e9)
    for device in devices:
        device.begin("run", end_ns + int(2 * AFTER_S * 1e9))
    _sleep_until(start_ns)
    processes = [device.process.pid or 0 for device in devices]
    cpu_s = _cpu_s(processes)
    _sleep_until(end_ns)
    cpu_s = _cpu_s(processes) - cpu_s
    found = Result(pss_bytes=tree_pss_bytes())
    killed_ns = time.monotonic_ns()
    devices[0].process.kill()
    ends: list[list[int]] = [device.result() for device in devices[1:]]
    found.rates = _rates(ends, start_ns, end_ns)
    found.cpu_s = _cpu_of_round(cpu_s / count, ends, start_ns, end_ns)
    until_ns = killed_ns + int(AFTER_S * 1e9)
    found.after_kill = min(sum(killed_ns < e < until_ns for e in one) for one in ends)
    return found


# -- devices -------------------------------------------------------------------------------------------------
def _devices(count: int, window_s: float, keys: NetworkKeys | None) -> Result:
    with tempfile.TemporaryDirectory() as folder, fleet(count, Path(folder), keys) as running:
        running.wait_for(WARM_ROUNDS, START_S)
        names = list(running.processes)
        processes = [running.processes[name].pid or 0 for name in names]
        start_ns, cpu_s = time.monotonic_ns(), _cpu_s(processes)
        end_ns = start_ns + int(window_s * 1e9)
        _sleep_until(end_ns)
        cpu_s = _cpu_s(processes) - cpu_s
        found, ends = Result(pss_bytes=tree_pss_bytes()), [running.ended_ns(name) for name in names]
        found.rates = _rates(ends, start_ns, end_ns)
        found.cpu_s = _cpu_of_round(cpu_s / count, ends, start_ns, end_ns)
        found.lost_s = _kill(running, names)
        return found


def _kill(running: Fleet, names: Sequence[str]) -> float:
    """Kill the first device. Returns the largest delay of a survivor in seconds."""
    killed_ns = time.monotonic_ns()
    running.kill(names[0])
    _sleep_until(killed_ns + int(WATCHED_S * 1e9))
    now_ns = time.monotonic_ns()
    lost = 0.0
    for name in names[1:]:
        ends = [*running.ended_ns(name), now_ns]
        gaps = [(b - a) / 1e9 for a, b in pairwise(ends)]
        late = [gap for gap, end in zip(gaps, ends[1:], strict=True) if end > killed_ns]
        lost = max(lost, max(late) - median(gaps))
    return lost


def _rates(ends: Sequence[Sequence[int]], start_ns: int, end_ns: int) -> list[float]:
    """Rounds per second in each slice of the window, as a mean over devices."""
    width = (end_ns - start_ns) / SLICES
    found = []
    for n in range(SLICES):
        low, high = start_ns + n * width, start_ns + (n + 1) * width
        closed = sum(sum(low <= end < high for end in one) for one in ends)
        found.append(closed / len(ends) / (width / 1e9))
    return found


def _cpu_s(processes: Sequence[int]) -> float:
    """CPU time so far of all these processes."""
    return sum(process_cpu_s(psutil.Process(pid)) for pid in processes)


def _cpu_of_round(of_device_s: float, ends: Sequence[Sequence[int]], start_ns: int, end_ns: int) -> float:
    """CPU time of a device in a round. `of_device_s`: in the window; `ends`: the rounds of some devices."""
    rounds = sum(sum(start_ns <= end < end_ns for end in one) for one in ends) / len(ends)
    return of_device_s / rounds if rounds else math.nan


def _sleep_until(at_ns: int) -> None:
    time.sleep(max(0.0, (at_ns - time.monotonic_ns()) / 1e9))
