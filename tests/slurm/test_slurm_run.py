"""`unweft run --on slurm` on a real cluster: events, a node that fails, and the ways in which runs end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import ROOT
from tests.support.slurm_cluster import Cluster

SCENARIO = """
[devices]
count = 3
[data]
persons = 2
batch = 8
[adapter]
rank = 4
max_devices = 8
[round]
count = 160
local_steps = 3
[correction]
rounds = 3
[eval]
every = 5
"""
EVENTS = """
[[event]]
round = 20
kind = "leave"
device = "d2"
[[event]]
round = 40
kind = "join"
device = "d3"
[[event]]
round = 60
kind = "crash"
device = "d3"
[[event]]
round = 90
kind = "stall"
device = "d1"
duration_s = 1.0
[[event]]
round = 110
kind = "return"
device = "d3"
"""
ENDLESS = SCENARIO.replace("count = 160", "count = 100000")
SILENCE = "from emulation.launch import slurm_script as s; s.SILENCE_S = 6; s.LOOK_S = 1;"
PATIENCE_S = 150.0


class Run:
    """A run that goes on until it is ended. `options`: options for sbatch."""

    def __init__(self, cluster: Cluster, root: Path, text: str, options: str = "") -> None:
        self.cluster, self.out = cluster, root / "run"
        (root / "scenario.toml").write_text(text)
        code = f"{SILENCE} from emulation.cli import main; main()"
        given = ["run", str(root / "scenario.toml"), "--on", "slurm", "--out", str(self.out)]
        self.log = (root / "launcher.log").open("w+")
        self.launcher = subprocess.Popen(
            [sys.executable, "-c", code, *given],
            cwd=ROOT,
            env={**cluster.variables, "UNWEFT_SBATCH": options},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def lines(self, device: str, file: str) -> list[dict[str, Any]]:
        path = self.out / "devices" / device / file
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def until(self, true: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < deadline, f"never: {what}; {self.said()}"
            time.sleep(0.3)

    def until_round(self, number: int) -> Run:
        self.until(lambda: all(self._round(d) >= number for d in ("d0", "d1", "d2")), f"round {number}")
        return self

    def members(self, device: str) -> list[str]:
        return sorted(self.lines(device, "metrics.jsonl")[-1]["members"])

    def node(self, device: str) -> str:
        task = json.loads((self.out / "slurm.json").read_text())["tasks"][device]
        return self.cluster.run("squeue", "--noheader", f"--jobs={task}", "--format=%N").strip()

    def _round(self, device: str) -> int:
        return int((self.lines(device, "metrics.jsonl") or [{"round": -1}])[-1]["round"])

    def close(self) -> None:
        self.launcher.kill()
        self.launcher.wait()
        self.log.close()


def listed(run: Run) -> str:
    """The tasks that have not ended, as squeue lists them."""
    return run.cluster.run("squeue", "--noheader", "--states=PENDING,RUNNING,COMPLETING")


def nothing_is_left(run: Run) -> None:
    """No task, no process of a task, no key."""
    assert listed(run) == ""
    assert run.cluster.tasks() == []
    assert not list(run.out.parent.rglob("*.keys")) and not list(run.out.parent.glob(".unweft-keys-*"))


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path) -> Iterator[Run]:
    """A run without an end, in which all devices have closed some rounds. Each has a GPU of Slurm's."""
    found = Run(cluster, tmp_path, ENDLESS, "--gres=gpu:1")
    try:
        yield found.until_round(3)
    finally:
        found.close()


def test_a_scenario_runs_on_slurm_as_it_does_in_processes(cluster: Cluster, tmp_path: Path) -> None:
    run = Run(cluster, tmp_path, SCENARIO + EVENTS)
    try:
        assert run.launcher.wait(300) == 0, run.said()
        found = json.loads((run.out / "summary.json").read_text())
        told = [(event["kind"], event["device"]) for event in found["events"]]
        assert told == [
            *[("leave", "d2"), ("join", "d3"), ("crash", "d3"), ("stall", "d1")],
            ("return", "d3"),
        ]
        assert found["accuracy"]["devices"] == ["d0", "d1", "d3"] and found["budget"]["violations"] == 0
        assert (run.out / "report.html").exists()
        nothing_is_left(run)
    finally:
        run.close()


def test_churn_a_node_that_fails_and_an_interrupt(run: Run) -> None:
    failed = run.node("d1")
    assert failed != run.node("d0")
    seen = [task.environ().get("CUDA_VISIBLE_DEVICES") for task in run.cluster.tasks()]
    assert len(seen) >= 3 and set(seen) == {"0"}  # each node has one GPU
    run.cluster.kill_node(failed)
    run.until(lambda: "d1" not in run.members("d0"), "a crash of the node's device")
    assert "d0" in run.members("d0") and run.launcher.poll() is None
    churn = [sys.executable, "-m", "unweft", "churn", str(run.out), "leave", "d2"]
    subprocess.run(churn, cwd=ROOT, env=run.cluster.variables, check=True)
    run.until(lambda: run.members("d0") == ["d0"], "a leave")
    run.launcher.send_signal(signal.SIGINT)
    assert run.launcher.wait(90) == 128 + signal.SIGINT, run.said()
    record = json.loads((run.out / "run.json").read_text())
    assert [(e["kind"], e["device"]) for e in record["events"]][:1] == [("crash", "d1")]
    assert (run.out / "adapters" / "d0").is_dir()
    nothing_is_left(run)


def test_the_tasks_of_a_killed_launcher_end_themselves(run: Run) -> None:
    run.cluster.run("scancel", "--batch", "--signal=STOP", _task(run, "d1"))  # a device that hangs ends too
    run.launcher.kill()
    run.until(lambda: not run.cluster.tasks(), "the end of all tasks")
    # the controller hears of the ends from the nodes, a moment later
    run.until(lambda: not listed(run), "no task in Slurm's list")
    nothing_is_left(run)


def test_a_run_whose_tasks_are_all_cancelled_says_so(run: Run) -> None:
    run.cluster.run("scancel", "--user=root")
    assert run.launcher.wait(90) in (0, 1), run.said()
    nothing_is_left(run)


def _task(run: Run, device: str) -> str:
    return str(json.loads((run.out / "slurm.json").read_text())["tasks"][device])
