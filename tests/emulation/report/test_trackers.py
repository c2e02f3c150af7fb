"""Experiment trackers: what is sent, what happens if one fails, and each one in its local mode."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from emulation.report import trackers
from emulation.report.trackers import TRACKERS, Tracking, Values
from emulation.scenario.loading import read
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from tests.support.command_line import QUICK, ROOT, unweft
from tests.support.synthetic_run import write


class Sent:
    """A tracker that keeps what it gets. `failing`: the call with this number raises."""

    def __init__(self, failing: int | None = None) -> None:
        self.values: list[tuple[int, Values]] = []
        self.finished, self._failing = False, failing

    def log(self, values: Values, round_: int) -> None:
        if len(self.values) == self._failing:
            raise ConnectionError("the server is gone")
        self.values.append((round_, values))

    def finish(self) -> None:
        self.finished = True


def follow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tracker: Sent) -> str:
    """Track the synthetic run; returns what was printed."""
    folder = write(tmp_path / "run")

    def start(library: Any, scenario: Scenario, out: Path) -> Sent:
        return tracker

    monkeypatch.setattr(trackers, "TRACKERS", {"kept": ("json", start)})
    shown = io.StringIO()
    with Tracking("kept", read(folder / "scenario.toml"), folder, Console(file=shown, width=200)):
        pass
    return shown.getvalue()


def test_rounds_and_accuracies_are_sent_with_their_rounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent = Sent()
    assert follow(monkeypatch, tmp_path, sent) == "" and sent.finished
    found: dict[str, dict[int, float]] = {}
    for round_, values in sent.values:
        for name, value in values.items():
            found.setdefault(name, {})[round_] = value
    assert found["d0/loss"][9] == pytest.approx(2.1) and len(found["d0/loss"]) == 10
    assert found["d2/spent_bytes"] == dict.fromkeys(range(5), 800.0)
    assert found["d0/accuracy_own"][5] == 0.5 and found["consensus_error"][3] == 0.01


def test_a_tracker_that_fails_ends_with_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = follow(monkeypatch, tmp_path, Sent(failing=7))
    assert shown == "tracking with kept ended: ConnectionError: the server is gone\n"


def test_without_a_tracker_nothing_runs(tmp_path: Path) -> None:
    with Tracking(None, Scenario(), tmp_path, Console(file=io.StringIO())) as tracking:
        assert not tracking._thread.is_alive()


def test_an_unknown_tracker_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert unweft(monkeypatch, "run", QUICK, "--track", "wandbb", "--out", tmp_path / "run") == 2
    assert "allowed: wandb, trackio, tensorboard, mlflow" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": ("no_such_module", None)})
    with pytest.raises(InputError, match=r"wandb is not installed .*allowed: pip install 'unweft\[wandb\]'"):
        trackers.check("wandb")


# -- the real ones ---------------------------------------------------------------------------------------
MODULES = {"wandb": "wandb", "trackio": "trackio", "tensorboard": "tensorboard", "mlflow": "mlflow"}
TRACK = """
import io, sys
from pathlib import Path
from rich.console import Console
from emulation.report.trackers import Tracking
from emulation.scenario.loading import read
shown, folder = io.StringIO(), Path(sys.argv[2])
with Tracking(sys.argv[1], read(folder / "scenario.toml"), folder, Console(file=shown, width=500)):
    pass
sys.exit(shown.getvalue() or 0)
"""


@pytest.mark.parametrize("name", TRACKERS)
def test_each_tracker_keeps_a_run_on_this_machine(name: str, tmp_path: Path) -> None:
    """In a process of its own: the libraries start threads and processes that outlive a run."""
    if find_spec(MODULES[name]) is None:
        pytest.skip(f"{name} is not installed; pip install 'unweft[{name}]'")
    folder = write(tmp_path / "run")
    local = {
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", TRACK, name, str(folder)],
        cwd=tmp_path,
        env={**os.environ, **local},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    kept = b"".join(
        path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and (".tfevents." in path.name or path.suffix in (".wandb", ".db"))
    )
    assert b"d0/loss" in kept, sorted(map(str, tmp_path.rglob("*")))


def test_the_extras_have_the_names_of_the_trackers() -> None:
    found = ConfigParser()
    found.read(ROOT / "setup.cfg", encoding="utf-8")
    assert set(TRACKERS) <= set(found["options.extras_require"]) and list(MODULES) == list(TRACKERS)
