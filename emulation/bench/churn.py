"""`unweft bench churn`: runs with random membership events, checked by invariants."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from emulation.analysis import records
from emulation.analysis.invariants import check
from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.hostile_member import Plan, delivered, hostile_run
from emulation.bench.harness.whole_run import whole_run
from emulation.scenario.loading import dump
from emulation.scenario.schema import Scenario
from peers.config import KeysConfig

PER_SECOND = 20.0  # hostile messages of one device to one other: until the end of the run
TIMEOUT_S = 1800
MAX_REASON = 300  # characters of the reason of a failed run


def run(scenario: Scenario, seeds: Sequence[int] = (0,), hostile: int = 0) -> Findings:
    """One run for each seed. Reports the injected events and the broken invariants.

    `hostile`: so many of the initial devices send hostile messages. Then the verdict is that of the others.
    """
    bad = list(scenario.initial_devices[len(scenario.initial_devices) - hostile :]) if hostile else []
    if bad:  # with an allow-list no member can invent others
        scenario = scenario.model_copy(update={"keys": KeysConfig(allow_list=True)})
    findings = Findings(f"Churn: {scenario.name}", "unweft bench churn")
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "soak"
            problems, events = _soak(scenario.model_copy(update={"seed": seed}), out, bad)
            messages = delivered(out)
        findings.measures += [
            Measure(f"seed {seed}", "events survived", "events", (float(events),)),
            *([Measure(f"seed {seed}", "hostile messages", "messages", (float(messages),))] if bad else ()),
            Measure(f"seed {seed}", "violations", "violations", (float(len(problems)),), most=0.0),
        ]
        findings.notes += [f"seed {seed}: violated: {problem}" for problem in problems] or [
            f"seed {seed}: ok"
        ]
    return findings


def _soak(scenario: Scenario, out: Path, hostile: Sequence[str]) -> tuple[list[str], int]:
    """The problems of one run, and the number of its injected events."""
    problems = []
    try:
        if hostile:
            plan = Plan(tuple(hostile), per_second=PER_SECOND, evicts=False, invents=False)
            hostile_run(dump(scenario), out, plan, TIMEOUT_S)
        else:
            whole_run(dump(scenario), out, timeout_s=TIMEOUT_S)
    except RuntimeError as error:
        problems.append(str(error)[-MAX_REASON:])
    problems += [f"a process is left: {pid}" for pid in _remaining_processes(out)]
    found = [str(violation) for violation in check(out, hostile=frozenset(hostile))]
    return problems + found, len(records.load(out).injected)


def _remaining_processes(out: Path) -> list[int]:
    """The processes of devices that still run, by their `started` records."""
    run = records.load(out)
    started = [int(e["pid"]) for d in run.devices for e in run.events[d] if e["event"] == "started"]
    return [pid for pid in started if psutil.pid_exists(pid) and _is_device(pid)]


def _is_device(pid: int) -> bool:
    """False if another process has the number now."""
    try:
        return "forkserver" in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False
