"""Runs in virtual time: equal under load and in one process; scripted events; signals from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from emulation.bench.clock import load
from tests.support.command_line import pid_in_round, quick_run
from tests.support.virtual_runs import CHURN, run_in_one_process, virtual_run

# Each run starts several processes that import torch: a loaded machine needs more than the usual minute.
pytestmark = pytest.mark.timeout(240)

HEARTBEATS_S = 5.0  # links with a real clock would have sent some in this time ...
STOPPED_S = 13.0  # ... and would not have waited so long for the next one
CORRECTED = (  # the survivors refit, measure and choose an action
    *("--set", "correction.policy=dominant", "--set", "correction.refit=0.25"),
    *("--set", "correction.period=2", "--set", "correction.rounds=6", "--set", "topology.kind=ring"),
)


@pytest.mark.slow
def test_a_run_under_load_gives_the_same_summary_to_the_last_bit(tmp_path: Path) -> None:
    radio = ("--set", "radio.jitter_s=0.003", "--set", "radio.codec=int4", "--set", "correction.refit=0.4")
    quiet = virtual_run(tmp_path / "quiet", *radio)
    with load():
        loaded = virtual_run(tmp_path / "loaded", *radio)
    assert any(device["adapter_sha256"] for device in quiet["devices"])
    assert quiet == loaded


def test_churn_happens_at_the_same_times_in_processes_and_in_one_process(tmp_path: Path) -> None:
    options = (*CHURN, *CORRECTED)
    first = virtual_run(tmp_path / "first", *options)
    assert [event["kind"] for event in first["events"]] == [
        "join",
        "crash",
        "stall",
        "return",
        "partition",
        "heal",
    ]
    crash = first["events"][1]
    assert 1.0 < crash["detected_s"]["max"] < 2.5  # the silence and at most a heartbeat or two
    exits = {device["id"]: device["exit"] for device in first["devices"]}
    assert exits == {"d0": 0, "d1": 0, "d2": 0, "d3": 0}  # of d2's second life
    assert first == run_in_one_process(tmp_path / "second", *options)


@pytest.mark.slow
def test_a_whole_run_may_be_stopped_for_longer_than_any_timeout(tmp_path: Path) -> None:
    out = tmp_path / "run"
    long = ("--set", "event=[]", "--set", "round.count=120", "--set", "round.local_steps=4")
    process = subprocess.Popen(quick_run(out, "--clock", "virtual", *long), stderr=subprocess.PIPE, text=True)
    try:
        pid_in_round(out, "d1")
        time.sleep(HEARTBEATS_S)
        children = psutil.Process(process.pid).children(recursive=True)
        assert process.poll() is None and children, "it was over before it could be stopped"
        for child in children:
            child.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_S)
        for child in children:
            child.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=200)
    finally:
        process.kill()  # all it started goes with it
    assert process.returncode == 0, said
    logs = [path.read_text() for path in (out / "devices").glob("*/log.txt")]
    assert len(logs) == 3 and not any("died" in log for log in logs)
    assert len((out / "devices" / "d1" / "metrics.jsonl").read_text().splitlines()) == 120


@pytest.mark.slow
def test_a_kill_from_outside_does_not_stop_virtual_time(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--clock", "virtual", "--set", "event=[]", "--set", "round.count=60")
    process = subprocess.Popen(quick_run(out, *options), stderr=subprocess.PIPE, text=True)
    os.kill(pid_in_round(out, "d1"), signal.SIGKILL)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    log = (out / "devices" / "d0" / "log.txt").read_text()
    assert "d1 died outside virtual time" in log


LIVES = '[{round=2, kind="leave", device="d2"}, {round=2, kind="join", device="d2"}]'
NEVER = '[{round=7, kind="join", device="d2"}, {round=8, kind="join", device="d3"}]'


def test_a_second_life_begins_after_the_first_and_all_accounts_balance(tmp_path: Path) -> None:
    first = virtual_run(tmp_path / "first", "--set", f"event={LIVES}")
    assert [event["kind"] for event in first["events"]] == ["leave", "join"]
    assert [link for link in first["links"] if link["open_bytes"]] == []
    assert first == run_in_one_process(tmp_path / "second", "--set", f"event={LIVES}")


def test_an_event_that_never_comes_due_is_not_done(tmp_path: Path) -> None:
    few = ("--set", "devices.count=2", "--set", "round.count=10")
    found = virtual_run(tmp_path / "run", "--set", f"event={NEVER}", *few)
    assert found["not_done"] == [{"round": 8, "kind": "join", "device": "d3"}]
    assert [device["id"] for device in found["devices"]] == ["d0", "d1", "d2"]
