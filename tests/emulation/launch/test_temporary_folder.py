"""The forkserver's temporary folder goes with the launcher, also if the launcher is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)
PATIENCE_S = 60
LAUNCHER = """
import os, subprocess, sys
from pathlib import Path
from emulation.launch import forkserver
from peers.config import ModelConfig
from peers.runtime.child_process import guard
forkserver.PRELOAD[:] = ["emulation.launch.preload_frozen"]  # without the heavy modules
forkserver.Forkserver(ModelConfig()).start(guard, name="child").join()
subprocess.run([sys.executable, "-c", "import emulation.launch.preload_frozen"], check=True)
print(*(path.name for path in Path(os.environ["TMPDIR"]).glob("pymp-*")), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("kill", [True, False])
def test_no_folder_stays_behind(kill: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:  # its path is short enough for the socket of a forkserver
        _assert_none_stays(Path(folder), kill)


def _assert_none_stays(folder: Path, kill: bool) -> None:
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline().startswith("pymp-")
        if kill:
            launcher.send_signal(signal.SIGKILL)
    until = time.monotonic() + PATIENCE_S
    while list(folder.glob("pymp-*")):  # torch keeps a cache of its own beside it
        assert time.monotonic() < until, list(folder.iterdir())
        time.sleep(0.05)
