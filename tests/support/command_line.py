"""The command `unweft` for tests: in this process, or as a process of its own."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from emulation import cli

ROOT = Path(__file__).parents[2]
QUICK = str(ROOT / "scenarios" / "quick.toml")
PATIENCE_S = 150  # processes import torch, on a machine that may be loaded


def unweft(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command in this process; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["unweft", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def quick_run(out: Path, *options: str) -> list[str]:
    """The command that runs scenarios/quick.toml into `out`."""
    return [str(Path(sys.executable).with_name("unweft")), "run", QUICK, "--out", str(out), *options]


def pid_in_round(out: Path, device: str) -> int:
    """Wait until a device has closed a round; returns its process id."""
    metrics = out / "devices" / device / "metrics.jsonl"
    deadline = time.monotonic() + PATIENCE_S
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline, "no round was closed"
        time.sleep(0.05)
    first = (out / "devices" / device / "events.jsonl").read_text().splitlines()[0]
    return int(json.loads(first)["pid"])
