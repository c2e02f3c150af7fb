"""The folder that a command writes: unusual paths, and two commands at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emulation.commands.output_folder import CLAIM, check_usable, claimed
from peers.errors import InputError
from tests.support.command_line import QUICK, unweft

HOLD = (
    "import sys, pathlib; from emulation.commands.output_folder import claimed\n"
    "with claimed(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def test_a_claim_leaves_no_file_and_no_empty_folder(tmp_path: Path) -> None:
    new, old = tmp_path / "a" / "new", tmp_path / "old"
    old.mkdir()
    for folder in (new, old):
        with claimed(folder):
            assert [path.name for path in folder.iterdir()] == [CLAIM]
    assert not new.exists() and list(old.iterdir()) == []


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(InputError, match="written by another command"), claimed(tmp_path):
        pass
    with claimed(tmp_path):
        (tmp_path / "summary.json").touch()
    with pytest.raises(InputError, match="not empty"), claimed(tmp_path):
        pass
    with claimed(tmp_path, new=False):
        pass


def test_the_claim_of_a_killed_process_is_void(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another command"), claimed(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (tmp_path / CLAIM).exists()
        check_usable(tmp_path)
        with claimed(tmp_path):
            pass


@pytest.mark.parametrize("path", [".", "link", "dangling", "deep/er"])
def test_unusual_paths_are_claimed_or_refused_in_one_line(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here" / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path / "here" / "real" if path == "." else tmp_path)
    if path == "dangling":
        with pytest.raises(InputError, match="link to nothing"):
            check_usable(Path(path))
        return
    check_usable(Path(path))
    with claimed(Path(path)):
        (Path(path) / "made").touch()
    assert (Path(path) / "made").exists()


def test_a_run_into_a_claimed_folder_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with claimed(tmp_path / "run"):
        assert unweft(monkeypatch, "run", QUICK, "--out", tmp_path / "run") == 2
        assert os.listdir(tmp_path / "run") == [CLAIM]  # noqa: PTH208
    error = capsys.readouterr().err
    assert "written by another command" in error and error.count("\n") == 1


def test_a_folder_that_vanishes_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from emulation.launch import run_loop

    def run(scenario: object, folder: Path, *rest: object) -> int:
        raise FileNotFoundError(2, "No such file or directory", str(folder / "run.json"))

    monkeypatch.setattr(run_loop, "run", run)
    assert unweft(monkeypatch, "run", QUICK, "--out", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert "No such file" in error and error.startswith("unweft: ") and error.count("\n") == 1
