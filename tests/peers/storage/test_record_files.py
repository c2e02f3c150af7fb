"""Files of records: half a line of a killed process is ended, and a process holds the file it writes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from peers.storage.record_files import end_line, is_held, open_records

WRITER = """
import pathlib, sys
from peers.storage.record_files import open_records
file = open_records(pathlib.Path(sys.argv[1]))
file.write("a"); file.flush(); print("held", flush=True); sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("before", "after"), [("", ""), ('{"a": 1}\n{"b"', '{"a": 1}\n{"b"\n'), ("x\n", "x\n")]
)
def test_half_a_line_is_ended(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(before)
    with open_records(path) as file:
        file.write("next\n")
    assert path.read_text() == f"{after}next\n"
    end_line(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_file_is_held_until_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "held\n"
        assert is_held(path)
        with open_records(path):  # in virtual time, two lives of a device share their files
            assert is_held(path)
        writer.kill()
    until = time.monotonic() + 5
    while is_held(path):
        assert time.monotonic() < until
    assert path.read_text() == "a\n"  # the second process ended the first one's line


def test_a_missing_file_is_not_held(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "events.jsonl")
    assert list(tmp_path.iterdir()) == []
