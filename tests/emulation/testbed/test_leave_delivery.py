"""Leaves that nobody has confirmed are copied to devices that run, by the launcher and by `unweft churn`."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator_free.membership.signed_records import Record, Status
from emulation.commands import churn
from emulation.launch import run_loop
from emulation.launch.run_state import DeviceStatus, RunState
from emulation.scenario.loading import load
from emulation.testbed import leave_delivery
from peers.errors import LEAVE_UNCONFIRMED, InputError
from peers.storage import leave_wishes
from tests.support.command_line import QUICK, unweft
from tests.support.membership_records import make
from tests.support.synthetic_run import write

TOMBSTONE = '{"t_s": 1, "round": 1, "event": "tombstone", "peer": "d3", "incarnation": 0}\n'


def left(device: str) -> Record:
    return replace(make(device, lamport=5), status=Status.LEFT)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in which d3 left while it reached nobody."""
    folder = write(tmp_path / "run")
    leave_wishes.write(folder / "devices" / "d3", [left("d3")], confirmed=False)
    return folder


def record(run: Path, device: str) -> None:
    with (run / "devices" / device / "events.jsonl").open("a") as file:
        file.write(TOMBSTONE)


def test_a_wish_is_pending_until_another_device_has_recorded_it(run: Path) -> None:
    record(run, "d3")
    assert leave_delivery.pending(run, ["d0", "d3"]) == [left("d3")]
    record(run, "d0")
    assert leave_delivery.pending(run, ["d3"]) == []
    assert leave_wishes.read(run / "devices" / "d3").confirmed


def test_the_launcher_delivers_a_wish_to_all_that_run_again_and_again(run: Path) -> None:
    state = RunState(scenario=load(Path(QUICK)), out=run)
    state.devices = {d: DeviceStatus(running=d != "d3") for d in ("d0", "d1", "d3")}
    state.last_round = {"d0": 3, "d1": -1}
    signals: list[Any] = []
    backend: Any = SimpleNamespace(signal=lambda *sent: signals.append(sent))
    run_loop.deliver_leaves(state, backend)
    run_loop.deliver_leaves(state, backend)  # too soon
    assert [leave_wishes.delivered(run / "devices" / d) for d in ("d0", "d1")] == [(left("d3"),)] * 2
    assert signals == [("d0", "partition")]  # d1 starts, and reads its folder then
    state.delivered_s -= leave_delivery.AGAIN_S
    run_loop.deliver_leaves(state, backend)
    assert len(signals) == 2
    record(run, "d1")
    state.delivered_s -= leave_delivery.AGAIN_S
    run_loop.deliver_leaves(state, backend)
    assert len(signals) == 2


def test_a_leave_without_confirmation_is_no_failure_of_a_run_if_its_wish_is_there(run: Path) -> None:
    state = RunState(scenario=load(Path(QUICK)), out=run)
    assert not state.failed("d3", LEAVE_UNCONFIRMED) and state.failed("d0", LEAVE_UNCONFIRMED)


def test_churn_delivers_the_leave_of_a_device_that_has_ended(
    monkeypatch: pytest.MonkeyPatch, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def pid_of(run: Path, device: str) -> int:
        if device in ("d2", "d3"):
            raise InputError(f"{device}: does not run")
        return 1000 + int(device[1:])

    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(churn, "pid_of", pid_of)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    assert unweft(monkeypatch, "churn", run, "leave", "d3") == 0
    assert sent == [(1000, signal.SIGUSR1), (1001, signal.SIGUSR1)]
    assert leave_wishes.delivered(run / "devices" / "d1") == (left("d3"),)
    assert unweft(monkeypatch, "churn", run, "leave", "d2") == 2
    assert "d2: does not run, and has no leave" in capsys.readouterr().err
