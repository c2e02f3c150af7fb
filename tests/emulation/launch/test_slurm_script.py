"""The batch script of `--on slurm`, run by a shell as a node runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from emulation.launch import slurm_script
from emulation.launch.slurm_script import HEARTBEAT, NOT_SHARED, TaskScript
from emulation.scenario.schema import Scenario

SHOWS_ARGUMENTS = ("sh", "-c", 'echo "$@"', "sh")
SLEEPS = ("sh", "-c", "exec sleep 60", "sh")
LOOK_S, LOOKS = 0.05, 4


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_script, "LOOK_S", LOOK_S)
    monkeypatch.setattr(slurm_script, "SILENCE_S", LOOK_S * LOOKS)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "a run"
    folder.mkdir()
    (folder / "scenario.toml").touch()
    (tmp_path / "secret").mkdir()
    return folder


def text(run: Path, prefix: tuple[str, ...], scenario: Scenario | None = None) -> str:
    script = TaskScript(scenario=scenario or Scenario(), out=run, secret=run.parent / "secret", prefix=prefix)
    return script.text(["d0", "d1", "d2"])


def log(run: Path) -> str:
    return (run / "devices" / "d1" / "log.txt").read_text()


@pytest.fixture
def task(run: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A task whose device runs until it is killed."""
    process = subprocess.Popen(["sh", "-c", text(run, SLEEPS)], start_new_session=True)
    while psutil.Process(process.pid).cmdline() != ["sleep", "60"]:
        time.sleep(0.005)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_task_runs_the_device_of_its_index(run: Path) -> None:
    subprocess.run(["sh", "-c", text(run, SHOWS_ARGUMENTS)], check=True)
    said = log(run).split(" --")
    assert said[0] == "python -m unweft device" and said[-1].strip() == "id d1"
    assert f"scenario {run}/scenario.toml" in said and "listen tcp://0.0.0.0:0" in said


def test_a_node_that_does_not_see_the_folder_says_so_by_its_exit_status(run: Path) -> None:
    (run / "scenario.toml").unlink()
    done = subprocess.run(["sh", "-c", text(run, SHOWS_ARGUMENTS)], check=False)
    assert done.returncode == NOT_SHARED and not (run / "devices").exists()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_device_ends_when_its_launcher_is_gone(
    run: Path, task: subprocess.Popen[bytes], stopped: bool
) -> None:
    if stopped:
        os.kill(task.pid, signal.SIGSTOP)
    assert task.wait(10) == -signal.SIGKILL
    assert "the launcher has been silent" in log(run)
    assert not (run.parent / "secret").exists()  # deleted before: Slurm kills the watch with the device


def test_a_device_goes_on_while_its_launcher_lives(run: Path, task: subprocess.Popen[bytes]) -> None:
    for beat in range(3 * LOOKS):
        (run / HEARTBEAT).write_text(f"{beat}\n")
        time.sleep(LOOK_S)
    assert task.poll() is None


def test_options_of_the_user_come_last(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    monkeypatch.setenv("UNWEFT_SBATCH", "--partition=edge --comment='a b'")
    scenario = Scenario.model_validate({"model": {"threads": 2, "device": "cuda:0"}})
    options = TaskScript(scenario=scenario, out=run, secret=run).options()
    assert options[-4:] == ["--cpus-per-task=2", "--gres=gpu:1", "--partition=edge", "--comment=a b"]
