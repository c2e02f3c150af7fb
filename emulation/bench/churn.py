"""`unweft bench churn`: a soak of random joins, leaves, crashes, stalls and returns, and a verdict on it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from emulation.analysis import records
from emulation.analysis.invariants import check
from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.whole_run import whole_run
from emulation.scenario.loading import dump
from emulation.scenario.schema import Scenario

TIMEOUT_S = 1800
MOST_SAID = 300  # characters of why a run failed


def run(scenario: Scenario, seeds: Sequence[int] = (0,)) -> Findings:
    """One run a seed, each judged by the invariants; the number of events that were survived."""
    findings = Findings(f"Churn: {scenario.name}", "unweft bench churn")
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            verdicts, events = _soak(scenario.model_copy(update={"seed": seed}), Path(folder))
        findings.measures += [
            Measure(f"seed {seed}", "events survived", "events", (float(events),)),
            Measure(f"seed {seed}", "violations", "violations", (float(len(verdicts)),), most=0.0),
        ]
        findings.notes += [f"seed {seed}: violated: {verdict}" for verdict in verdicts] or [
            f"seed {seed}: ok"
        ]
    return findings


def _soak(scenario: Scenario, folder: Path) -> tuple[list[str], int]:
    out, verdicts = folder / "soak", []
    try:
        whole_run(dump(scenario), out, timeout_s=TIMEOUT_S)
    except RuntimeError as error:
        verdicts.append(str(error)[-MOST_SAID:])
    verdicts += [f"a process is left: {pid}" for pid in _left(out)]
    return verdicts + [str(violation) for violation in check(out)], len(records.load(out).injected)


def _left(out: Path) -> list[int]:
    """Devices of a run that are still there, by what they wrote of themselves when they started."""
    run = records.load(out)
    started = [int(e["pid"]) for d in run.devices for e in run.events[d] if e["event"] == "started"]
    return [pid for pid in started if psutil.pid_exists(pid) and _forked(pid)]


def _forked(pid: int) -> bool:
    """Not another process that was given the number since."""
    try:
        return "forkserver" in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False
