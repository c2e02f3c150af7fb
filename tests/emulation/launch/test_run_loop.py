"""The run loop with a backend made for this test: a new backend needs only one module and one table entry."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from emulation.launch import evaluator_process, forkserver, run_loop
from emulation.launch.backend import BACKENDS, BackendEntry
from emulation.launch.errors import RunFailed
from emulation.launch.evaluator_process import EvaluatorProcess
from emulation.launch.run_state import DeviceStatus, RunState
from emulation.scenario.loading import load
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from tests.support.command_line import QUICK, unweft


class FakeBackend:
    """Devices that close one round at each look and end with `exit_status` after their last one."""

    poll_s = 0.0

    def __init__(self, state: RunState, last_round: int, exit_status: int) -> None:
        self.state, self.last_round, self.exit_status = state, last_round, exit_status
        self.signals: list[tuple[str, str]] = []
        self.closed: dict[str, int] = {}
        self.ended: list[bool] = []

    def start_initial(self) -> None:
        for device in self.state.scenario.initial_devices:
            self.start(device)

    def start(self, device: str) -> None:
        self.closed[device] = -1

    def signal(self, device: str, kind: str) -> None:
        self.signals.append((device, kind))
        if kind == "leave":
            self.closed[device] = self.last_round

    def running(self) -> dict[str, DeviceStatus]:
        found = {device: self._status(device) for device in self.closed}
        for device in self.closed:
            self._close_round(device)
        return found

    def end(self, succeeded: bool) -> dict[str, DeviceStatus]:
        self.ended.append(succeeded)
        return self.running()

    def _status(self, device: str) -> DeviceStatus:
        running = self.closed[device] < self.last_round
        exits = (None if running else self.exit_status,)
        return DeviceStatus(running=running, exits=exits, failure="its log", record={"node": f"n-{device}"})

    def _close_round(self, device: str) -> None:
        self.closed[device] = min(self.closed[device] + 1, self.last_round)
        folder = self.state.out / "devices" / device
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"round": self.closed[device], "phase": "TRAIN", "loss": 1.0}) + "\n")


class Runs:
    """Runs of the fake backend."""

    def __init__(self, out: Path) -> None:
        self.out, self.console = out, Console(record=True, width=200, quiet=True)
        self.backend: FakeBackend
        self.last_round, self.exit_status = 29, 0

    def prepare(self, state: RunState, console: Console) -> FakeBackend:
        self.backend = FakeBackend(state, self.last_round, self.exit_status)
        self.out.mkdir()
        return self.backend

    def run(self, *overrides: str) -> dict[str, Any]:
        run_loop.run(load(Path(QUICK), overrides), self.out, self.console, "fake")
        return self.record()

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "run.json").read_text())
        return found


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    found = Runs(tmp_path / "run")
    module = ModuleType("fake_backend")
    monkeypatch.setattr(module, "prepare", found.prepare, raising=False)
    monkeypatch.setitem(sys.modules, "fake_backend", module)
    monkeypatch.setitem(BACKENDS, "fake", BackendEntry("fake_backend", "for a test"))
    monkeypatch.setattr(evaluator_process, "evaluate_run", print)
    monkeypatch.setattr(forkserver, "PRELOAD", [])
    return found


def test_a_backend_needs_only_a_module_and_a_table_entry(runs: Runs) -> None:
    record = runs.run()
    assert runs.backend.signals == [("d2", "leave")] and runs.backend.ended == [True]
    assert [(e["round"], e["kind"], e["device"]) for e in record["events"]] == [(2, "leave", "d2")]
    assert record["devices"] == {d: {"node": f"n-{d}", "exit": 0} for d in ("d0", "d1", "d2")}


def test_a_device_that_joins_is_started_at_its_event(runs: Runs) -> None:
    record = runs.run("event.0.kind=join", "event.0.device=d9")
    assert [(e["kind"], e["device"]) for e in record["events"]] == [("join", "d9")]
    assert record["devices"]["d9"] == {"node": "n-d9", "exit": 0}


def test_events_that_never_were_due_are_printed(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.console, runs.last_round = Console(width=200), 1
    record = runs.run()
    assert "not done: leave d2 after round 2: the run had ended" in capsys.readouterr().out
    assert record["events"] == []


def test_a_device_that_failed_ends_the_run_and_all_devices(runs: Runs) -> None:
    runs.exit_status = 3
    with pytest.raises(RunFailed, match="ended with exit status 3: its log"):
        runs.run()
    assert runs.backend.ended == [False]
    assert {device["exit"] for device in runs.record()["devices"].values()} <= {None, 3}


def test_an_evaluator_that_failed_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "evaluator.log").write_text("no memory\n")
    evaluator = EvaluatorProcess(RunState(scenario=Scenario(), out=tmp_path))
    evaluator._process = SimpleNamespace(exitcode=1, is_alive=lambda: False)  # type: ignore[assignment]
    said = r"the evaluator ended with 1: no exception .* output: no memory; its log: .*evaluator\.log"
    with pytest.raises(RunFailed, match=said):
        evaluator.check()
    evaluator.end()


def test_every_backend_of_the_table_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unweft(monkeypatch, "run", "--help") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in BACKENDS)


def test_an_unknown_backend_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert unweft(monkeypatch, "run", QUICK, "--on", "moon", "--out", tmp_path / "run") == 2
    assert "--on: 'moon'" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_scenario_that_a_backend_cannot_run_leaves_no_record(runs: Runs) -> None:
    def refuse(state: RunState, console: Console) -> FakeBackend:
        raise InputError("no")

    sys.modules["fake_backend"].prepare = refuse  # type: ignore[attr-defined]
    with pytest.raises(InputError):
        runs.run()
    assert not runs.out.exists()
