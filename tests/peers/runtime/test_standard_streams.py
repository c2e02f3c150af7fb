"""Output that cannot be written ends no process and leaves no trace in its exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PRINT = (
    "import os, sys; from peers.runtime import standard_streams as s; s.protect(); s.protect()\n"
    "from rich.console import Console\n"
    "for n in range(3000): print('• – ü', n); Console().print('•', n)\n"
    "print('bad', file=sys.stderr); s.flush(sys.stdout, None); print(os.fstat(1).st_rdev, file=sys.stderr)"
)


def printed(redirect: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirect}', sys.executable, PRINT],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[3]), **environment},
        timeout=60,
    )


@pytest.mark.parametrize("redirect", [">/dev/full", ">&-", ">/dev/full 2>&-", "1>&- 2>&- <&-", "2>/dev/full"])
def test_streams_that_are_full_or_closed(redirect: str) -> None:
    done = printed(redirect)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr and "Exception" not in done.stderr


def test_a_pipe_whose_reader_has_gone() -> None:
    done = printed("| head -1; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stdout) == (0, "• – ü 0\n")
    assert done.stderr.startswith("bad\n")


def test_characters_that_a_terminal_does_not_know_are_replaced() -> None:
    done = printed("", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.startswith("? ? ? 0\n")


def test_a_closed_descriptor_goes_to_no_other_file() -> None:
    null = Path("/dev/null").stat().st_rdev
    assert printed(">&-").stderr == f"bad\n{null}\n"
