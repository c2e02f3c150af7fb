"""A whole run that goes on after Ctrl-C. It starts devices, since only processes end and start again.

`unweft bench resume` kills launchers under the real clock (tests/emulation/bench/test_bench.py).
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from emulation.analysis import invariants, records
from peers.storage import checkpoint
from tests.support.command_line import PATIENCE_S, quick_run

EVENTS = '[{round=4, kind="leave", device="d2"}, {round=45, kind="join", device="d3"}]'
ROUNDS = 60


@pytest.mark.timeout(400)  # two runs, on a machine that may be loaded
def test_a_virtual_run_goes_on_after_an_interrupt(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--clock", "virtual", "--set", f"round.count={ROUNDS}", "--set", f"event={EVENTS}")
    command = quick_run(out, *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        until = time.monotonic() + PATIENCE_S
        while len(records.read_lines(out / "devices" / "d0" / "metrics.jsonl")) < 8:
            assert launcher.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        launcher.send_signal(signal.SIGINT)
        _, said = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 130 and f"to go on: unweft run --resume {out}" in said
    before = records.load(out)
    last = {device: before.metrics[device][-1]["round"] for device in ("d0", "d1")}
    assert {d: checkpoint.closed_round(checkpoint.path_of(out, d)) for d in last} == last
    assert not checkpoint.path_of(out, "d2").exists() and max(last.values()) < ROUNDS - 1

    done = subprocess.run(
        [*command[:2], "--resume", str(out)], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    run = records.load(out)
    for device in ("d0", "d1"):
        lives = [(line["life"], line["round"]) for line in run.metrics[device]]
        assert [r for _, r in lives] == list(range(ROUNDS))  # no round is lost, none comes again
        assert {life for life, r in lives if r <= last[device]} == {0} and lives[-1][0] == 1
        assert [line["t1_s"] for line in run.metrics[device]] == sorted(
            line["t1_s"] for line in run.metrics[device]
        )
    assert [(e["kind"], e["device"]) for e in run.injected] == [("leave", "d2"), ("join", "d3")]
    assert not run.events["d2"][-1]["life"] and run.metrics["d3"][-1]["round"] == ROUNDS - 1
    assert invariants.check(out) == []
    summary = json.loads((out / "summary.json").read_text())
    assert [entry["round"] for entry in summary["resumed"]] == [max(last.values()) + 1]
    blocks = json.loads((out / "adapters" / "d0" / "unweft.json").read_text())["blocks"]
    assert [(b["device"], b["incarnation"]) for b in blocks] == [("d0", 1), ("d1", 1), ("d3", 0)]
    again = subprocess.run([*command[:2], "--resume", str(out)], capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "is finished" in again.stderr and again.stderr.count("\n") == 1
