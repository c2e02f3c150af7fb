"""Two device processes exchange their blocks over real sockets. They start as a launcher starts them."""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from emulation.launch.ports import free_ports
from peers.config import DeviceConfig
from peers.runtime.main import process_main
from peers.runtime.spec import DeviceSpec
from transport.security.keys import NetworkKeys

pytestmark = pytest.mark.timeout(240)  # two processes import torch on a machine that may be loaded
PATIENCE_S = 180.0
DEVICES = ("d0", "d1")
ROUNDS = 4
CONFIG = DeviceConfig.model_validate(
    {
        "data": {"persons": 2, "batch": 8},
        "adapter": {"rank": 2, "max_devices": 4},
        "round": {"count": ROUNDS, "local_steps": 1, "deadline_s": 60.0},
        "mixing": {"tolerance": 0.0},  # every copy is sent, so both end with equal ones
        # Rounds take about 1 s. The run is then longer than the 2 s after which a link is tried again, so the
        # first hello to a seed that started later arrives before the end, also on a loaded machine.
        "radio": {"codec": "fp32", "rate_Bps": 50_000},
        "membership": {"settle_s": 120.0, "crash_after_s": 60.0},
    }
)


@dataclass(frozen=True)
class Pair:
    """The files and exit statuses of two devices."""

    folder: Path
    exits: dict[str, int | None]

    def log(self, device: str) -> str:
        return (self.folder / "devices" / device / "log.txt").read_text()

    def lines(self, device: str, name: str) -> list[dict[str, Any]]:
        text = (self.folder / "devices" / device / f"{name}.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def event(self, device: str, kind: str) -> dict[str, Any]:
        (found,) = [line for line in self.lines(device, "events") if line["event"] == kind]
        return found

    def block(self, device: str, owner: str) -> dict[str, Tensor]:
        """The owner's block in the adapter of the device."""
        tensors = load_file(
            self.folder / "adapters" / device / "blocks" / owner / "adapter_model.safetensors"
        )
        return {name: values for name, values in tensors.items() if "lora_B" in name}


def specs(folder: Path, keys: dict[str, NetworkKeys | None]) -> list[DeviceSpec]:
    at = dict(zip(DEVICES, (f"tcp://127.0.0.1:{port}" for port in free_ports(2)), strict=True))
    make = partial(DeviceSpec, config=CONFIG, out=str(folder), cohort=2, epoch_ns=time.monotonic_ns())
    return [
        make(d, listen=at[d], advertise=at[d], seeds=tuple(at.values()), keys=keys.get(d)) for d in DEVICES
    ]


def run_both(folder: Path, keys: dict[str, NetworkKeys | None]) -> Pair:
    """Run both devices until they end."""
    context = multiprocessing.get_context("spawn")
    lifeline, kept = context.Pipe(duplex=False)
    running: dict[str, SpawnProcess] = {}
    try:
        for spec in specs(folder, keys):
            running[spec.id] = context.Process(target=process_main, args=(spec, lifeline))
            running[spec.id].start()
        deadline = time.monotonic() + PATIENCE_S
        for process in running.values():
            process.join(max(0.0, deadline - time.monotonic()))
        return Pair(folder, {device: process.exitcode for device, process in running.items()})
    finally:
        for process in running.values():
            process.kill()
            process.join()
        kept.close()
        lifeline.close()


@pytest.fixture(scope="module", params=["in the clear", "with keys"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    shared = NetworkKeys((b"\1" * 32,)) if request.param == "with keys" else None
    return run_both(tmp_path_factory.mktemp("pair"), dict.fromkeys(DEVICES, shared))


def test_both_finish(pair: Pair) -> None:
    assert pair.exits == {"d0": 0, "d1": 0}, [pair.log(device) for device in DEVICES]
    for device in DEVICES:
        assert [line["round"] for line in pair.lines(device, "metrics")] == list(range(ROUNDS))


def test_each_device_mixes_the_other_copy_in_every_round(pair: Pair) -> None:
    for device, other in (("d0", "d1"), ("d1", "d0")):
        assert all(line["weights"] == {other: 0.5} for line in pair.lines(device, "metrics"))


def test_both_adapters_contain_both_blocks(pair: Pair) -> None:
    for device in DEVICES:
        about = json.loads((pair.folder / "adapters" / device / "unweft.json").read_text())
        assert [(b["device"], b["slot"]) for b in about["blocks"]] == [("d0", 0), ("d1", 1)]


def test_each_has_received_the_others_block(pair: Pair) -> None:
    for owner, other in (("d0", "d1"), ("d1", "d0")):
        made, received = pair.block(owner, owner), pair.block(other, owner)
        assert made.keys() == received.keys() and any(values.any() for values in made.values())
        assert all(torch.allclose(made[name], received[name], atol=1e-6) for name in made)


def test_sent_bytes_equal_received_and_dropped_bytes(pair: Pair) -> None:
    for sender, receiver in (("d0", "d1"), ("d1", "d0")):
        out = pair.event(sender, "finished")["links"][receiver]
        into = pair.event(receiver, "finished")["links"][sender]
        assert out["sent_bytes"] == into["received_bytes"] + sum(into["dropped_bytes"].values())
        assert out["bytes_by_cause"]["train"] > 0
