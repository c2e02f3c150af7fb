"""`unweft bench resume`: kills the launcher of a run at random moments and goes on with the run each time.

A trial starts a small run with a leave and a join, waits for its first checkpoint, kills the launcher
(SIGKILL) after a random delay, and runs `unweft run --resume`. The verdict is that of a run that nobody
killed: all devices do all rounds, no invariant is violated, and no file holds a forgotten block.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emulation.analysis import device_histories, forgotten_files, records, tombstones
from emulation.analysis.invariants import check
from emulation.bench.harness.figures import Findings, Measure
from emulation.bench.harness.whole_run import RUN, run_command, whole_run
from peers.storage import checkpoint

TIMEOUT_S = 1800.0
LOOK_S = 0.02
SCENARIO = """
[devices]
count = 3
[data]
persons = 2
batch = 8
[adapter]
rank = 4
max_devices = 5
[round]
count = 60
local_steps = 2
[correction]
rounds = 3
[eval]
every = 10
[checkpoint]
every = 4
[[event]]
round = 10
kind = "leave"
device = "d2"
[[event]]
round = 20
kind = "join"
device = "d3"
"""
LEFT, LIVE = "d2", ("d0", "d1", "d3")


@dataclass
class Trial:
    """One killed run. round: the last one that was closed before the kill; lost: rounds that came again."""

    round: int
    lost: int
    problems: list[str]


def run(seeds: Sequence[int] = (0,), trials: int = 5) -> Findings:
    """`trials` killed runs for each seed, which draws their moments."""
    findings = Findings("Go on after a SIGKILL of the launcher", "unweft bench resume")
    with tempfile.TemporaryDirectory() as folder:
        spare = Path(folder)
        whole_s, expected = _reference(spare)
        for seed in seeds:
            draw = random.Random(seed)
            moments = [draw.uniform(0.0, whole_s) for _ in range(trials)]
            done = [_trial(spare / f"{seed}-{n}", at_s, expected) for n, at_s in enumerate(moments)]
            findings.measures += _measures(seed, done)
            findings.notes += [
                f"seed {seed}: killed after round {trial.round}: {problem}"
                for trial in done
                for problem in trial.problems
            ]
    return findings


def _measures(seed: int, trials: Sequence[Trial]) -> list[Measure]:
    group = f"seed {seed}"
    failed = sum(bool(trial.problems) for trial in trials)
    return [
        Measure(group, "runs that were killed", "runs", (float(len(trials)),)),
        Measure(group, "last round before the kill", "rounds", tuple(float(t.round) for t in trials)),
        Measure(group, "rounds that came again", "rounds", tuple(float(t.lost) for t in trials)),
        Measure(group, "runs with a problem", "runs", (float(failed),), most=0.0),
    ]


def _reference(spare: Path) -> tuple[float, list[str]]:
    """A run that nobody kills: seconds from its first checkpoint to its end, and its verdict."""
    out = spare / "whole"
    whole_run(SCENARIO, out, timeout_s=TIMEOUT_S)
    run = records.load(out)
    ends_s = [float(line["t1_s"]) for lines in run.metrics.values() for line in lines]
    first_s = min(float(line["t1_s"]) for line in run.metrics["d0"] if line["round"] >= 3)
    return max(ends_s) - first_s, _problems(out)


def _trial(out: Path, at_s: float, expected: Sequence[str]) -> Trial:
    """Kill a run `at_s` after its first checkpoint, and go on with it."""
    _killed_run(out, at_s)
    before = records.load(out)
    closed = max((int(line["round"]) for lines in before.metrics.values() for line in lines), default=-1)
    saved = [checkpoint.closed_round(path) for path in (out / checkpoint.FOLDER).glob("*.safetensors")]
    try:
        run_command(sys.executable, "-c", RUN, "run", "--resume", str(out), timeout_s=TIMEOUT_S)
    except RuntimeError as error:
        if "is finished" not in str(error):  # else the kill came after the last round
            return Trial(closed, 0, [str(error)])
        run_command(sys.executable, "-c", RUN, "report", str(out), timeout_s=TIMEOUT_S)
    problems = [problem for problem in _problems(out) if problem not in expected]
    return Trial(closed, max(0, closed - max(saved, default=-1)), problems)


def _killed_run(out: Path, at_s: float) -> None:
    file = out.with_name(f"{out.name}.toml")
    file.write_text(SCENARIO, encoding="utf-8")
    command = [sys.executable, "-c", RUN, "run", str(file), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as launcher:
        try:
            _wait_for_checkpoint(out, launcher)
            time.sleep(at_s)
        finally:
            launcher.send_signal(signal.SIGKILL)


def _wait_for_checkpoint(out: Path, launcher: subprocess.Popen[str]) -> None:
    """Raises RuntimeError if the run ends without one."""
    until = time.monotonic() + TIMEOUT_S
    while not any((out / checkpoint.FOLDER).glob("*.safetensors")):
        if launcher.poll() is not None:
            raise RuntimeError(f"the run failed: {launcher.communicate()[1].strip()}")
        if time.monotonic() > until:
            raise RuntimeError(f"the run wrote no checkpoint in {TIMEOUT_S:g} s")
        time.sleep(LOOK_S)


def _problems(out: Path) -> list[str]:
    """The broken invariants of a run that has ended, and what else is not as the scenario says."""
    run = records.load(out)
    found = [str(violation) for violation in check(out)]
    last = run.scenario.round.count - 1
    found += [f"{d} did not close the last round" for d in LIVE if _last_round(run.metrics.get(d)) != last]
    histories = device_histories.find(run, run.injected, tombstones.find(run))
    gone = [block.key for block in histories[LEFT].incarnations]
    found += [f"{path} holds a block of {LEFT}" for path in forgotten_files.check(out, gone).holding]
    kinds = [event["kind"] for event in run.injected]
    return found + [f"the events are {kinds}"] * (kinds != ["leave", "join"])


def _last_round(lines: Sequence[records.Record] | None) -> int:
    return int(lines[-1]["round"]) if lines else -1
