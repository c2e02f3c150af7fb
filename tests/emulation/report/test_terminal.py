"""The progress of a run in the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from emulation.analysis.records import Tail, load
from emulation.report.terminal import Progress
from tests.support import synthetic_run
from tests.support.watched import append, event, injected, reopen


def shown(folder: Path, *seconds: float, terminal: bool = False, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
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
    lines = [line for line in text.splitlines() if " · sent " in line]
    assert [line.split(" s ")[0].strip() for line in lines] == ["11", "22"]


def test_a_line_is_never_wrapped_and_says_how_far_the_run_is(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run")
    reopen(folder)
    for path in folder.glob("devices/*/metrics.jsonl"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    line = next(line for line in shown(folder, 11.0, width=40).splitlines() if "11 s · 4 of" in line)
    assert line.strip() == (
        "11 s · 4 of 10 rounds done · about 6 s left · devices d0, d1, d2, d3 · loss 2.550 · "
        "accuracy 73 % after rounds 4 to 9 · sent 2.8 kB"
    )


def test_every_accuracy_has_its_round_and_an_evaluator_that_lags_is_named(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run")
    reopen(folder)
    (folder / "evaluations.jsonl").write_text(
        json.dumps(synthetic_run.evaluation("d0", 4, "round", 0.5, 0.25, 0.0)) + "\n"
    )
    snapshots = folder / "devices" / "d0" / "snapshots"
    snapshots.mkdir()
    for round_ in range(5, 10):
        (snapshots / f"{round_:05d}-round.safetensors").touch()
    text = shown(folder, 11.0)
    cells = [cell.strip() for cell in row_of("d0", text).split("│")]
    assert cells[2:9] == ["meeting", "9", "correction", "2.100", "50 %", "31 %", "4"]
    assert "accuracy 31 % after round 4" in text
    assert text.count("evaluating round 4, devices at 9; 5 snapshots wait") == 2  # the line, the table


def test_events_are_announced_when_they_happen_and_once(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run")
    reopen(folder)
    console = Console(file=io.StringIO(), width=40)
    with Progress(load(folder).scenario, folder, console) as progress:
        progress.update(1.0)
        append(folder / "injected.jsonl", injected(20.4, "crash", "d0"))
        progress.update(2.0)
        assert "   20 s · d0 crashes\n" in console.file.getvalue()  # type: ignore[attr-defined]
        append(folder / "devices/d1/events.jsonl", event(21.0, "deleted", peer="d0", incarnation=0))
        progress.update(3.0)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.endswith("   21 s · the block of d0 is deleted on d1\n") and text.count("crashes") == 1


def test_records_that_cannot_be_read_end_no_run(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run")
    scenario = load(folder).scenario
    (folder / "devices/d0/metrics.jsonl").unlink()
    (folder / "devices/d0/metrics.jsonl").mkdir()
    with Progress(scenario, folder, Console(file=io.StringIO())) as progress:
        progress.update(11.0)


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
