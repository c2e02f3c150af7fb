"""The command line: exit statuses, one line for bad input, an example in each help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from emulation.analysis import summary
from tests.support.command_line import QUICK, ROOT, unweft
from tests.support.synthetic_run import write


@pytest.mark.parametrize("command", ["run", "device", "report", "forget"])
def test_help_carries_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert unweft(monkeypatch, command, "--help") == 0
    assert f"Example: unweft {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "round.cuont=3"], "round.cuont: unknown key"),
        (["--set", "adapter.rank=eight"], "adapter.rank: 'eight'"),
        (["--set", "event.0.device=d9"], "'d9' cannot leave"),
        (["--set", "adapter.rank=100"], "rank"),
        (["--set", "data.kind=jsonl", "--set", "data.path=/no/such"], "data.path: /no/such"),
        (["--set", "data.kind=poems"], "data.kind: 'poems'"),
        (["--set", "model.name=/no/such/model"], "model.name"),
    ],
)
def test_bad_scenario_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    words: str,
) -> None:
    assert unweft(monkeypatch, "run", QUICK, "--out", tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("unweft: ") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_unreadable_scenario_fails_quickly_and_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from emulation.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, "run", str(tmp_path / "none.toml")], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "none.toml: cannot be read" in done.stderr


def test_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unweft(monkeypatch, "run") == 2


def test_a_folder_that_is_not_empty_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    assert unweft(monkeypatch, "run", QUICK, "--out", tmp_path) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    assert unweft(monkeypatch, "run", QUICK, "--out", tmp_path / "file" / "inside") == 2
    assert "cannot be made" in capsys.readouterr().err


def test_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    assert unweft(monkeypatch, "report", folder) == 0
    shown = capsys.readouterr().out
    assert "d2 left at round 4" in shown and f"report: {folder / 'report.html'}" in shown
    assert (folder / "summary.json").exists() and (folder / "result.png").exists()


def test_report_of_no_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert unweft(monkeypatch, "report", tmp_path) == 2
    assert "holds no run" in capsys.readouterr().err


def test_interrupted_is_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(summary, "write", interrupt)
    assert unweft(monkeypatch, "report", write(tmp_path / "run")) == 130


@pytest.mark.parametrize(
    ("option", "value"), [("--listen", "here"), ("--seeds", "tcp://a:1,tcp://b"), ("--id", "a/b")]
)
def test_device_checks_its_flags(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    option: str,
    value: str,
) -> None:
    flags = {"--id": "d0", "--listen": "tcp://127.0.0.1:7000", "--out": str(tmp_path), "--scenario": QUICK}
    flags[option] = value
    assert unweft(monkeypatch, "device", *(word for pair in flags.items() for word in pair)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"unweft: {option}") and error.count("\n") == 1
