"""Rotation of the network key on a live testbed: two device processes train on during the three steps."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emulation.commands import keys as keys_cli
from emulation.launch.ports import free_ports
from tests.support.command_line import QUICK
from transport.security import keys

pytestmark = pytest.mark.timeout(240)  # processes that import torch
PATIENCE_S = 150.0
DEVICES = ("d0", "d1")
SETTINGS = (
    *("devices.count=2", "event=[]", "round.count=100000", "round.deadline_s=5.0"),
    *("eval.every=100000", "membership.crash_after_s=60.0"),
)


@contextmanager
def two_devices(folder: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Start a process for each device, as containers do, with the keys in folder/keys."""
    addresses = dict(zip(DEVICES, (f"tcp://127.0.0.1:{port}" for port in free_ports(2)), strict=True))
    unweft = str(Path(sys.executable).with_name("unweft"))
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for device in DEVICES:
            flags = {"--id": device, "--listen": addresses[device], "--keys": folder / "keys"}
            flags |= {"--seeds": ",".join(addresses.values()), "--scenario": QUICK, "--out": folder / "run"}
            words = [str(word) for pair in flags.items() for word in pair]
            with (folder / f"{device}.log").open("wb") as log:
                command = [unweft, "device", *words, *settings]
                running[device] = subprocess.Popen(command, stdout=log, stderr=log)
        yield running
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def until(folder: Path, what: str) -> None:
    """Wait until the log of every device has the text `what`."""
    deadline = time.monotonic() + PATIENCE_S
    logs = [folder / f"{device}.log" for device in DEVICES]
    while not all(what in log.read_text() for log in logs):
        assert time.monotonic() < deadline, [log.read_text() for log in logs]
        time.sleep(0.05)


def rounds(folder: Path) -> list[list[dict[str, object]]]:
    found = []
    for device in DEVICES:
        path = folder / "run" / "devices" / device / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found.append([json.loads(line) for line in lines])
    return found


def mixed_with_the_other(folder: Path) -> None:
    """Wait until both devices have closed two more rounds with messages from each other."""
    before = [len(lines) for lines in rounds(folder)]
    deadline = time.monotonic() + PATIENCE_S
    while True:
        later = [lines[n:] for lines, n in zip(rounds(folder), before, strict=True)]
        if all(sum(bool(line["weights"]) for line in lines) >= 2 for lines in later):
            return
        assert time.monotonic() < deadline, [(folder / f"{d}.log").read_text() for d in DEVICES]
        time.sleep(0.05)


def test_the_key_changes_while_devices_learn(tmp_path: Path) -> None:
    old = keys.generate(tmp_path / "keys", DEVICES).label()
    with two_devices(tmp_path) as running:
        mixed_with_the_other(tmp_path)
        for step, active in ((keys_cli.Step.install, 2), (keys_cli.Step.use, 2), (keys_cli.Step.remove, 1)):
            now = keys.rotate(tmp_path / "keys", keys_cli._STEPS[step])
            for process in running.values():
                process.send_signal(signal.SIGHUP)
            until(tmp_path, f"network key {now.label()} serves, {active} active")
            mixed_with_the_other(tmp_path)
        assert now.label() != old
        (tmp_path / "keys" / "network.keys").write_text("spoilt\n")
        for process in running.values():
            process.send_signal(signal.SIGHUP)
        until(tmp_path, "the keys stay as they are")
        mixed_with_the_other(tmp_path)
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in running.values()] == [0, 0]
