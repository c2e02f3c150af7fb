"""`unweft churn`: signals to processes, docker commands for containers, and errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from emulation.commands import churn
from emulation.commands.churn import pid_of
from emulation.testbed import churn_log
from emulation.testbed.docker import Project
from tests.support.command_line import unweft
from tests.support.synthetic_run import write

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
WRITES = "import sys, time; f = open(sys.argv[1], 'a'); print('up', flush=True); time.sleep(60)"


# -- processes -------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(tmp_path / "run")


@pytest.fixture
def sent(monkeypatch: Patch) -> list[tuple[int, int]]:
    """Sent signals: process id and number."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append((pid, number)))
    monkeypatch.setattr(churn, "pid_of", lambda run, device: int(device[1:]) + 1000)
    return found


@pytest.mark.parametrize(
    ("event", "number"),
    [("leave", "TERM"), ("retire", "INT"), ("crash", "KILL"), ("stall", "STOP"), ("resume", "CONT")],
)
def test_an_event_is_a_signal_to_each_process(
    monkeypatch: Patch, run: Path, sent: list[tuple[int, int]], event: str, number: str
) -> None:
    assert unweft(monkeypatch, "churn", run, event, "d0", "d1") == 0
    assert sent == [(1000, signal.Signals[f"SIG{number}"]), (1001, signal.Signals[f"SIG{number}"])]


def test_events_are_logged(monkeypatch: Patch, run: Path, sent: list[tuple[int, int]]) -> None:
    unweft(monkeypatch, "churn", run, "stall", "d0", "d1", "--seconds", "0.01")
    noted = churn_log.read(run, 0)
    assert [(n["kind"], n["device"], n["duration_s"]) for n in noted] == [
        ("stall", "d0", 0.01),
        ("stall", "d1", 0.01),
    ]
    assert [number for _, number in sent] == [signal.SIGSTOP] * 2 + [signal.SIGCONT] * 2


def test_an_event_for_containers_is_refused_for_processes(
    monkeypatch: Patch, run: Path, capsys: Capture
) -> None:
    assert unweft(monkeypatch, "churn", run, "partition", "d0") == 2
    assert "partition: not to processes" in capsys.readouterr().err


def test_seconds_are_refused_for_events_without_a_duration(
    monkeypatch: Patch, run: Path, capsys: Capture
) -> None:
    assert unweft(monkeypatch, "churn", run, "leave", "d0", "--seconds", "2") == 2
    assert "--seconds: has no meaning with leave" in capsys.readouterr().err


def test_the_process_of_a_device_is_the_one_that_writes_its_records(run: Path) -> None:
    path = run / "devices" / "d0" / "events.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITES, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        with path.open("a") as file:
            file.write(json.dumps({"t_s": 0, "round": 0, "event": "started", "pid": process.pid}) + "\n")
        assert pid_of(run, "d0") == process.pid
        process.kill()


@pytest.mark.parametrize("device", ["d0", "d9"])
def test_no_other_process_gets_a_signal(monkeypatch: Patch, run: Path, capsys: Capture, device: str) -> None:
    """The process id of d0 belongs to another process by now; d9 never ran."""
    with (run / "devices" / "d0" / "events.jsonl").open("a") as file:
        file.write(json.dumps({"t_s": 0, "round": 0, "event": "started", "pid": os.getpid()}) + "\n")
    assert unweft(monkeypatch, "churn", run, "crash", device) == 2
    assert f"{device}: does not run" in capsys.readouterr().err


# -- containers ------------------------------------------------------------------------------------------


class Docker:
    """The answers of docker for a project of three devices; the third has ended."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.fails = ""

    def __call__(
        self, command: Sequence[str], variables: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        words = list(command[1:])
        self.asked.append(words)
        if self.fails:
            return subprocess.CompletedProcess(command, 1, "", f"warning\n{self.fails}\n")
        return subprocess.CompletedProcess(command, 0, self.say(words), "")

    def say(self, words: list[str]) -> str:
        if words[0] == "ps":
            return "aaa\nbbb\nccc\n" if "label=com.docker.compose.service=device" in words else ""
        if words[0] == "inspect":
            states = {"a": ("running", 0), "b": ("paused", 0), "c": ("exited", 137)}
            return json.dumps([self.about(letter, *state) for letter, state in states.items()])
        if words[:2] == ["network", "ls"]:
            return "tb_testbed\n"
        if words[-1] == "--json":
            return json.dumps({"address": "tcp://10.93.0.7:7000"})
        if words[-1] == "emulation.testbed.id_leases":
            return json.dumps({"d0": "a" * 12, "d1": "b" * 12, "d2": "c" * 12, "d3": "gone"})
        return ""

    def about(self, letter: str, status: str, code: int) -> dict[str, Any]:
        return {"Id": letter * 64, "Name": f"/tb-{letter}", "State": {"Status": status, "ExitCode": code}}

    def done(self) -> list[str]:
        """The commands that change something."""
        questions = ("ps", "inspect")
        asked = [w for w in self.asked if w[0] not in questions and w[:2] != ["network", "ls"]]
        return [" ".join(w) for w in asked if w[-1] not in ("--json", "emulation.testbed.id_leases")]


@pytest.fixture
def docker(monkeypatch: Patch) -> Docker:
    fake = Docker()
    monkeypatch.setattr(churn, "Project", lambda name: Project(name, execute=fake))
    return fake


def test_devices_are_found_by_their_claims(docker: Docker) -> None:
    found = Project("tb", execute=docker).devices()
    assert {device: (c.name, c.state, c.exit) for device, c in found.items()} == {
        "d0": ("tb-a", "running", None),
        "d1": ("tb-b", "paused", None),
        "d2": ("tb-c", "exited", 137),
    }


NOTE = "exec aaaaaaaaaaaa python -m emulation.testbed.churn_log"


@pytest.mark.parametrize(
    ("arguments", "done"),
    [
        (["leave", "d0"], [f"{NOTE} leave d0", "kill --signal SIGTERM aaaaaaaaaaaa"]),
        (["retire", "d0"], [f"{NOTE} retire d0", "kill --signal SIGINT aaaaaaaaaaaa"]),
        (["crash", "d0"], [f"{NOTE} crash d0", "kill --signal SIGKILL aaaaaaaaaaaa"]),
        (
            ["stall", "d0", "--seconds", "0.01"],
            [f"{NOTE} stall d0", "pause aaaaaaaaaaaa", "unpause aaaaaaaaaaaa"],
        ),
        (["resume", "d1"], ["unpause bbbbbbbbbbbb"]),
        (["return", "d2"], ["start cccccccccccc"]),
        (["partition", "d0"], [f"{NOTE} partition d0", "network disconnect tb_testbed aaaaaaaaaaaa"]),
        (
            ["heal", "d0"],
            [f"{NOTE} heal ", "network connect --alias device --ip 10.93.0.7 tb_testbed aaaaaaaaaaaa"],
        ),
        (["join", "d7"], ["compose -p tb create --no-recreate --no-build --scale device=4 device"]),
    ],
)
def test_an_event_is_a_docker_command_for_each_container(
    monkeypatch: Patch, docker: Docker, arguments: list[str], done: list[str]
) -> None:
    assert unweft(monkeypatch, "churn", "tb", *arguments) == 0
    assert docker.done() == done


def test_an_unknown_device_is_bad_input(monkeypatch: Patch, docker: Docker, capsys: Capture) -> None:
    assert unweft(monkeypatch, "churn", "tb", "leave", "d9") == 2
    assert "d9: not in tb; allowed: d0, d1, d2" in capsys.readouterr().err
    assert docker.done() == []


def test_a_project_without_devices_is_bad_input(monkeypatch: Patch, docker: Docker, capsys: Capture) -> None:
    monkeypatch.setattr(docker, "say", lambda words: "")
    assert unweft(monkeypatch, "churn", "nothing", "leave", "d0") == 2
    assert "nothing: no device of this project runs" in capsys.readouterr().err


def test_an_error_of_docker_is_shown(monkeypatch: Patch, docker: Docker, capsys: Capture) -> None:
    docker.fails = "Cannot connect to the Docker daemon"
    assert unweft(monkeypatch, "churn", "tb", "leave", "d0") == 2
    assert "Cannot connect to the Docker daemon" in capsys.readouterr().err


def test_a_missing_docker_command_is_bad_input(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setenv("PATH", "")
    assert unweft(monkeypatch, "churn", "tb", "leave", "d0") == 2
    assert "docker: not found" in capsys.readouterr().err
