"""Parallel chains: order within a chain, and no process left after a failure or a kill of the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from emulation.experiments.parallel import chains
from emulation.launch.errors import RunFailed
from tests.support.chains import run
from tests.support.command_line import PATIENCE_S


def gone(pid: int) -> bool:
    until = time.monotonic() + 20
    while psutil.pid_exists(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not psutil.pid_exists(pid)


def test_items_of_a_key_stay_together_and_in_order() -> None:
    assert chains(["a1", "b1", "a2", "c1", "b2"], lambda item: item[0]) == [
        ["a1", "a2"],
        ["b1", "b2"],
        ["c1"],
    ]


def test_the_items_of_a_chain_are_done_in_order(tmp_path: Path) -> None:
    run(tmp_path, [["a1", "a2"], ["b1"], ["c1", "c2"]])
    done = (tmp_path / "done").read_text().split()
    assert sorted(done) == ["a1", "a2", "b1", "c1", "c2"]
    assert done.index("a1") < done.index("a2") and done.index("c1") < done.index("c2")
    assert (tmp_path / "a1.pid").read_text() == (tmp_path / "a2.pid").read_text() != str(os.getpid())


def test_the_first_failure_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"RuntimeError: bad cannot be done \(see .*bad\.txt\)"):
        run(tmp_path, [["slow"], ["bad"]])
    assert not (tmp_path / "done").exists()


def test_a_killed_parent_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.support.chains import run; import sys;"
        "run(Path(sys.argv[1]), [['slow1'], ['slow2']])"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    files = [tmp_path / "slow1.pid", tmp_path / "slow2.pid"]
    until = time.monotonic() + PATIENCE_S
    while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < until:
        time.sleep(0.05)
    pids = [int(file.read_text()) for file in files]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert all(gone(pid) for pid in pids)
