"""Real devices for `unweft bench rounds`, started as by the launcher, with a learner of one matrix."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import cast

import networkx as nx
import torch

from coordinator_free.averaging.topology import Graph, Shape, topology
from emulation.bench.harness.learner import BenchLearner
from emulation.launch.forkserver import PRELOAD
from emulation.launch.ports import free_ports, loopback
from peers.adapter_config import AdapterConfig
from peers.config import (
    DeviceConfig,
    MembershipConfig,
    MixingConfig,
    RoundConfig,
    TopologyConfig,
)
from peers.correction_config import CorrectionConfig
from peers.learning.learner import Learner
from peers.radio_config import RadioConfig
from peers.runtime.child_process import guard, redirect_output
from peers.runtime.recorder import Recorder
from peers.runtime.spec import DeviceSpec
from peers.runtime.wiring import count_drop, make_driver
from transport.links.malloc import keep_freed_memory
from transport.links.zmq_links import ZmqLinks
from transport.security.keys import DeviceIdentity, NetworkKeys
from transport.shaping.accounting import Accounts
from transport.shaping.channel import FixedChannel, LinkQuality

FOUR_REGULAR = "bench-circulant"
OFFSETS = (1, 2)
DEADLINE_S, CRASH_AFTER_S = 5.0, 3.0
UNSHAPED = 1 << 40  # bytes per second, and bytes
POLL_S = 0.05
PRELOADED = [*PRELOAD[:-1], __name__, PRELOAD[-1]]


@topology(FOUR_REGULAR)
def four_regular(members: Sequence[str], shape: Shape) -> Graph[str]:
    return _circulant(tuple(members))


@lru_cache(maxsize=4)
def _circulant(members: tuple[str, ...]) -> Graph[str]:
    """Each device with the two next devices on either side; fewer if there are less than five devices."""
    n = len(members)
    graph: Graph[str] = nx.Graph()
    graph.add_nodes_from(members)
    graph.add_edges_from((members[i], members[(i + k) % n]) for i in range(n) for k in OFFSETS if k % n)
    return graph


def config(devices: int) -> DeviceConfig:
    """D-PSGD: each device averages its matrix with those of its neighbours, without limits on bytes."""
    return DeviceConfig(
        mixing=MixingConfig(mode="paper-literal"),
        topology=TopologyConfig(kind=FOUR_REGULAR),
        round=RoundConfig(count=1 << 30, local_steps=1, deadline_s=DEADLINE_S),
        radio=RadioConfig(budget_bytes=UNSHAPED, rate_Bps=UNSHAPED, codec="fp32"),
        adapter=AdapterConfig(max_devices=max(16, devices)),
        correction=CorrectionConfig(rounds=0),
        membership=MembershipConfig(crash_after_s=CRASH_AFTER_S),
    )


def device_main(spec: DeviceSpec, lifeline: Connection) -> None:
    """Entry point of the process of one device."""
    guard(lifeline)
    redirect_output(Path(spec.out) / "devices" / spec.id / "log.txt")
    torch.set_num_threads(1)
    keep_freed_memory()
    os._exit(asyncio.run(_live(spec)))


async def _live(spec: DeviceSpec) -> int:
    recorder = Recorder(Path(spec.out) / "devices" / spec.id, spec.epoch_ns or 0, spec.life)
    links, accounts = ZmqLinks(spec.id, spec.listen, spec.keys), Accounts()
    await links.start(count_drop(accounts))
    learner = cast(Learner, BenchLearner(spec.id))
    return await make_driver(spec, links, accounts, learner, recorder, DeviceIdentity.generate()).run()


class Fleet:
    """The running devices and their closed rounds."""

    def __init__(self, folder: Path, epoch_ns: int, processes: dict[str, ForkServerProcess]) -> None:
        self._folder, self._epoch_ns, self.processes = folder, epoch_ns, processes

    def ended_ns(self, device: str) -> list[int]:
        """The end of each round of a device, in monotonic ns."""
        path = self._folder / "devices" / device / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        ends = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # an incomplete last line
                ends.append(self._epoch_ns + round(json.loads(line)["t1_s"] * 1e9))
        return ends

    def wait_for(self, rounds: int, timeout_s: float) -> None:
        """Wait until each device has closed `rounds`. Raises RuntimeError if one ends or in a timeout."""
        deadline = time.monotonic() + timeout_s
        while any(len(self.ended_ns(device)) < rounds for device in self.processes):
            gone = [d for d, process in self.processes.items() if not process.is_alive()]
            if gone or time.monotonic() > deadline:
                raise RuntimeError(f"{gone or 'not all'}: no {rounds} rounds; {self._last_log()}")
            time.sleep(POLL_S)

    def kill(self, device: str) -> None:
        os.kill(self.processes[device].pid or 0, signal.SIGKILL)

    def _last_log(self) -> str:
        logs = self._folder.glob("devices/*/log.txt")
        return next(
            (text for log in logs if (text := log.read_text().strip()[-500:])), "their logs are empty"
        )


@contextmanager
def fleet(devices: int, folder: Path, keys: NetworkKeys | None) -> Iterator[Fleet]:
    """Start devices d0, d1, ... All processes are killed at the end of the block."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    lifeline, keep = context.Pipe(duplex=False)
    epoch_ns = time.monotonic_ns()
    names = [f"d{n}" for n in range(devices)]
    addresses = dict(zip(names, map(loopback, free_ports(devices)), strict=True))
    settings, channel = config(devices), FixedChannel(LinkQuality(UNSHAPED, 1))
    processes: dict[str, ForkServerProcess] = {}
    try:
        for name in names:
            seeds = tuple(addresses[other] for other in names[:3] if other != name)
            where = (addresses[name], addresses[name], seeds, str(folder), devices, epoch_ns)
            spec = DeviceSpec(name, settings, *where, keys=keys, channel=channel, group=addresses)
            processes[name] = context.Process(target=device_main, args=(spec, lifeline), name=name)
            processes[name].start()
        yield Fleet(folder, epoch_ns, processes)
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.join()
        keep.close()
        lifeline.close()
