"""A docker command that records its arguments and changes the states of containers, and a run with it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from emulation.launch.compose import ComposeBackend
from emulation.launch.run_state import RunState
from emulation.scenario.loading import load
from emulation.scenario.schema import Scenario
from emulation.testbed import id_leases, start_gate
from emulation.testbed.docker import Project
from tests.support.started_run import Started

SCENARIO = """
[devices]
count = 3
[round]
count = 20
"""


class Docker:
    """Containers by their ids. Commands change their states as docker does."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.states = dict.fromkeys(hosts, ("running", 0))
        self.asked: list[str] = []
        self.variables: Mapping[str, str] = {}
        self.created_with: Mapping[str, str] = {}
        self.fails = ""

    def __call__(
        self, command: Sequence[str], variables: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        words = list(command[1:])
        self.variables = variables
        if words[0] not in ("ps", "inspect", "network"):  # these commands change nothing
            self.asked.append(" ".join(words))
        if self.fails and self.fails in words:
            return subprocess.CompletedProcess(command, 1, "", f"cannot {self.fails}")
        return subprocess.CompletedProcess(command, 0, self.say(words), "")

    def say(self, words: list[str]) -> str:
        match words[0]:
            case "ps":
                return " ".join(self.states) if "label=com.docker.compose.service=device" in words else ""
            case "inspect":
                about = [
                    {"Id": host.ljust(64, "0"), "Name": f"/{host}", "State": {"Status": s, "ExitCode": code}}
                    for host, (s, code) in self.states.items()
                ]
                return json.dumps(about)
            case "logs":
                return "what it said last\n"
            case "compose" if "create" in words:
                self.states["7" * 12] = ("created", 0)
                self.created_with = self.variables
            case "pause" | "unpause" | "start":
                self.states[words[-1]] = ("paused" if words[0] == "pause" else "running", 0)
            case "kill":
                ended = {"SIGTERM": 0, "SIGINT": 0, "SIGKILL": 137}
                if words[2] in ended:
                    self.states[words[-1]] = ("exited", ended[words[2]])
        return ""


def claim_ids(run: Path) -> dict[str, str]:
    """The container of each of three devices, which have claimed their ids."""
    folder = run / id_leases.FOLDER
    folder.mkdir(parents=True)
    found = {f"d{i}": f"{i}" * 12 for i in range(3)}
    for device, host in found.items():
        (folder / device).write_text(f"token {host}\n")
        (run / "devices" / device).mkdir(parents=True)
    return found


def run_of(scenario: Scenario, tmp_path: Path, docker: Docker) -> Started[ComposeBackend]:
    out = tmp_path / "run"
    state = RunState(scenario=scenario, out=out, epoch_ns=0, pending=list(scenario.events))
    project = Project("tb", execute=docker)
    return Started(state, ComposeBackend(state=state, project=project, console=Console(quiet=True)))


def started(tmp_path: Path, docker: Docker, *events: str, closed: int = 5) -> Started[ComposeBackend]:
    """A run in which every device has closed a round."""
    file = tmp_path / "scenario.toml"
    file.write_text(SCENARIO + "".join(f"[[event]]\n{event}\n" for event in events))
    scenario = load(file)
    for device in scenario.initial_devices:
        path = tmp_path / "run" / "devices" / device / "metrics.jsonl"
        path.write_text(json.dumps({"round": closed}) + "\n")
        start_gate.open_to(tmp_path / "run", device)
    run = run_of(scenario, tmp_path, docker)
    run.look()
    return run
