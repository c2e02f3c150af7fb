"""Several `unweft device` processes that are told to stop together export their last closed rounds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from emulation.launch.ports import free_ports
from tests.support.command_line import QUICK, pid_in_round
from tests.support.learners import same

pytestmark = pytest.mark.timeout(400)
DEVICES = ("d0", "d1")
OPTIONS = (
    *("devices.count=2", "event=[]", "round.count=5000", "round.local_steps=40", "eval.every=1"),
    *("keys.enabled=false", "membership.leave_grace_s=20"),
)


def command(out: Path, device: str, ports: dict[str, int]) -> list[str]:
    seeds = ",".join(f"tcp://127.0.0.1:{port}" for port in ports.values())
    chosen = [word for option in OPTIONS for word in ("--set", option)]
    place = ["--listen", f"tcp://127.0.0.1:{ports[device]}", "--seeds", seeds, "--out", str(out)]
    unweft = str(Path(sys.executable).with_name("unweft"))
    return [unweft, "device", "--id", device, "--scenario", QUICK, "--snapshots", *place, *chosen]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_devices_that_stop_together_export_the_last_closed_round(
    tmp_path: Path, number: signal.Signals
) -> None:
    out, ports = tmp_path / "run", dict(zip(DEVICES, free_ports(2), strict=True))
    running = {
        device: subprocess.Popen(command(out, device, ports), stderr=subprocess.PIPE) for device in DEVICES
    }
    try:
        for device in DEVICES:
            pid_in_round(out, device)
        time.sleep(1.0)
        for process in running.values():
            process.send_signal(number)
        for process in running.values():
            _, error = process.communicate(timeout=120)
            assert process.returncode == 0, error
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    for device in DEVICES:
        folder = out / "devices" / device
        last = int(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["round"])
        closed = load_file(folder / "snapshots" / f"{last:05d}-round.safetensors")
        if number == signal.SIGTERM:  # the run is over
            end = load_file(folder / "snapshots" / f"{last:05d}-end.safetensors")
            assert same(end, closed)
        # A device's adapter: scale and bases are those of all; B of the last closed round gives its hash.
        exported = load_file(out / "adapters" / device / "adapter_model.safetensors")
        largest = max(float(b.abs().max()) for name, b in exported.items() if "lora_B" in name)
        scale = json.loads((out / "adapters" / device / "unweft.json").read_text())["recipe"]["scale"]
        assert largest == float(scale * max(b.abs().max() for b in closed.values()))
