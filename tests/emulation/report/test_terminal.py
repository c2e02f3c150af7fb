"""The progress of a run in the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from emulation.analysis.records import Tail, load
from emulation.report.terminal import Progress
from tests.support import synthetic_run


def shown(folder: Path, *seconds: float, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=terminal, color_system=None)
    with Progress(load(folder).scenario, folder, console) as progress:
        for at in seconds:
            progress.update(at)
        console.print(progress.table())
    return console.file.getvalue()  # type: ignore[attr-defined]


def row_of(device: str, text: str) -> str:
    return next(line for line in text.splitlines() if line.strip("│| ").startswith(f"{device} "))


def test_one_row_for_each_device(tmp_path: Path) -> None:
    text = shown(synthetic_run.write(tmp_path / "run"), 1.0)
    rows = [row_of(device, text) for device in synthetic_run.ALL]
    assert [text.index(row) for row in rows] == sorted(text.index(row) for row in rows)
    assert "finished" in rows[0] and "100 %" in rows[0]


def test_without_a_terminal_a_line_is_printed_every_ten_seconds(tmp_path: Path) -> None:
    text = shown(synthetic_run.write(tmp_path / "run"), 3.0, 11.0, 15.0, 22.0)
    lines = [line for line in text.splitlines() if "sent" in line and "round" in line and "·" in line]
    assert [line.split(" s ")[0].strip() for line in lines] == ["11", "22"]


def test_in_a_terminal_the_table_is_removed_at_the_end(tmp_path: Path) -> None:
    assert "\x1b[" in shown(synthetic_run.write(tmp_path / "run"), 1.0, terminal=True)


def test_a_device_that_was_killed_is_shown_as_crashed(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run")
    path = folder / "devices" / "d2" / "events.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    for device in ("d0", "d1"):
        path = folder / "devices" / device / "events.jsonl"
        path.write_text(path.read_text().replace('"kind": "leave"', '"kind": "crash"'))
    assert "crashed" in row_of("d2", shown(folder, 1.0))


def test_a_record_counts_once_its_line_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    tail = Tail(path)
    assert list(tail.read()) == []
    path.write_text('{"a": 1}\n{"a"')
    assert list(tail.read()) == [{"a": 1}]
    with path.open("a") as file:
        file.write(": 2}\n")
    assert list(tail.read()) == [{"a": 2}]
    assert json.dumps(list(tail.read())) == "[]"
