"""Commands of Slurm that record their arguments and change the states of tasks, and a run with them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from emulation.launch.run_state import RunState
from emulation.launch.slurm import SlurmBackend
from emulation.launch.slurm_script import TaskScript
from emulation.scenario.loading import load
from emulation.testbed import id_leases
from emulation.testbed.slurm import Slurm
from tests.support.started_run import Started

SCENARIO = """
[devices]
count = 3
[round]
count = 20
"""


class FakeSlurm:
    """Array tasks by id. A task that is submitted runs at once on its own node."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[str, str]] = {}  # state, exit code: a wait status
        self.asked: list[str] = []  # commands that change something
        self.scripts: list[str] = []
        self.refuses = ""  # a command that fails
        self.jobs = 0
        self.first_state = "RUNNING"

    def __call__(self, command: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
        if command[0] != "squeue":
            self.asked.append(" ".join(command))
        if self.refuses and self.refuses in command:
            return subprocess.CompletedProcess(command, 1, "", f"{command[0]}: error: no {self.refuses}")
        return subprocess.CompletedProcess(command, 0, self._say(list(command), text), "")

    def _say(self, words: list[str], text: str) -> str:
        match words[0]:
            case "sbatch" if "--test-only" not in words:
                return self._submit(words, text)
            case "squeue":
                return "".join(self._line(task) for task in self.states)
            case "scancel":
                self._cancel(words)
        return ""

    def _submit(self, words: list[str], text: str) -> str:
        self.jobs += 1
        self.scripts.append(text)
        last = next(word for word in words if word.startswith("--array=0-")).removeprefix("--array=0-")
        for index in range(int(last) + 1):
            self.states[f"{self.jobs}_{index}"] = (self.first_state, "0")
        return f"{self.jobs}\n"

    def _line(self, task: str) -> str:
        job, _, index = task.partition("_")
        state, code = self.states[task]
        return f"{job}|{index}|{state}|{code}|Resources|node{index}|\n"

    def _cancel(self, words: list[str]) -> None:
        ended = {"--signal=TERM": ("COMPLETED", "0"), "--signal=INT": ("COMPLETED", "0")}
        ended["--signal=KILL"] = ("FAILED", "9")
        after = next((ended[word] for word in words if word in ended), None)
        if words[-1] in self.states:
            self.states[words[-1]] = after or self.states[words[-1]]
        elif "--signal=KILL" in words:
            for task in [task for task, (state, _) in self.states.items() if state == "RUNNING"]:
                self.states[task] = ("FAILED", "9")


class StartedOnSlurm(Started[SlurmBackend]):
    """A run whose initial devices have started, and its backend."""

    def look(self) -> None:
        self.backend._asked_s = float("-inf")
        super().look()


def claim_ids(run: Path, *devices: str) -> None:
    """Devices claim their ids, as they do when their tasks start."""
    folder = run / id_leases.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for device in devices:
        (folder / device).write_text(f"token node-of-{device}\n")


def prepared(tmp_path: Path, slurm: FakeSlurm, *events: str) -> StartedOnSlurm:
    """A run before its start."""
    file = tmp_path / "scenario.toml"
    tmp_path.mkdir(exist_ok=True)
    file.write_text(SCENARIO + "".join(f"[[event]]\n{event}\n" for event in events))
    scenario, out = load(file), tmp_path / "run"
    out.mkdir(exist_ok=True)
    state = RunState(scenario=scenario, out=out, pending=list(scenario.events))
    backend = SlurmBackend(
        state=state,
        slurm=Slurm("unweft-1", execute=slurm),
        script=TaskScript(scenario=scenario, out=out, secret=tmp_path / "secret"),
        console=Console(quiet=True),
    )
    return StartedOnSlurm(state, backend)


def started(tmp_path: Path, slurm: FakeSlurm, *events: str, closed: int = 5) -> StartedOnSlurm:
    """A run in which every initial device has closed a round."""
    run = prepared(tmp_path, slurm, *events)
    initial = run.state.scenario.initial_devices
    claim_ids(run.state.out, *initial)
    run.backend.start_initial()
    for device in initial:
        folder = run.state.out / "devices" / device
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"round": closed}) + "\n")
    slurm.asked.clear()
    run.look()
    return run
