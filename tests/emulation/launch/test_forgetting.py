"""Leaves of real processes that nobody hears, and files that were written before a leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from peers.errors import LEAVE_UNCONFIRMED
from peers.runtime import partition
from tests.support.command_line import pid_in_round, quick_run

pytestmark = pytest.mark.timeout(300)  # several processes import torch on a machine that may be loaded


def events(out: Path, device: str) -> list[dict[str, Any]]:
    text = (out / "devices" / device / "events.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def blocks(out: Path, device: str) -> list[str]:
    about = json.loads((out / "adapters" / device / "unweft.json").read_text())
    return [block["device"] for block in about["blocks"]]


def test_a_leave_alone_in_a_partition_reaches_all_and_leaves_no_file_with_its_block(tmp_path: Path) -> None:
    """d1 retires with an export. d2 leaves while it reaches nobody. Crashed blocks are kept."""
    out = tmp_path / "run"
    options = ("--set", 'on_crash="keep"', "--set", "event=[]", "--set", "round.count=400")
    with subprocess.Popen(quick_run(out, *options), stdout=subprocess.PIPE, text=True) as launcher:
        try:
            pids = {device: pid_in_round(out, device) for device in ("d0", "d1", "d2")}
            os.kill(pids["d1"], signal.SIGINT)
            wait_for(lambda: (out / "adapters" / "d1" / "unweft.json").exists())
            assert "d2" in blocks(out, "d1")
            partition.write(out / "devices" / "d2", ["d0", "d1"])
            os.kill(pids["d2"], partition.SIGNAL)
            time.sleep(0.5)
            os.kill(pids["d2"], signal.SIGTERM)
            assert launcher.wait(250) == 0
        finally:
            launcher.kill()
    run = json.loads((out / "run.json").read_text())
    assert run["devices"]["d2"]["exit"] == LEAVE_UNCONFIRMED
    assert any(e["event"] == "unconfirmed_leave" and e["blocks"] == ["d2@0"] for e in events(out, "d2"))
    assert any(e["event"] == "deleted" and e["peer"] == "d2" for e in events(out, "d0"))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["unconfirmed_leaves"] == []  # the launcher delivered it, and d0 recorded it
    forgotten = summary["forgotten"]
    assert (forgotten["tombstones"], forgotten["holding"]) == (["d2@0"], [])
    assert forgotten["corrected"] == ["adapters/d1"]
    assert blocks(out, "d0") == blocks(out, "d1") == ["d0", "d1"]


def wait_for(true: Any) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
