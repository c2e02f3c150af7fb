"""One device: an OS process that trains its own block and trades copies with its neighbours.

The process wires the parts together. `peers.protocol` decides; `peers.runtime.driver` performs.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from coordinator_free.membership.slots import NoFreeSlot
from peers import plugins
from peers.config import DeviceConfig
from peers.errors import InputError
from peers.learning.learner import Learner
from peers.models.loader import load_model
from peers.runtime import health
from peers.runtime.child_process import guard, redirect_output
from peers.runtime.driver import Driver
from peers.runtime.key_rotation import on_hangup
from peers.runtime.recorder import Recorder
from peers.runtime.scripted_events import Scripted
from peers.tasks import encode, tasks
from transport.clocks.real import RealClock
from transport.links.malloc import keep_freed_memory
from transport.links.zmq_dealer import Limits
from transport.links.zmq_links import ZmqLinks
from transport.security.keys import DeviceIdentity, NetworkKeys
from transport.shaping.channel import Channel, FixedChannel, LinkQuality

NEAR = FixedChannel(LinkQuality(1 << 40, 1_000_000))  # 1 ms, and as fast as the device's own radio


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """All that a device process is started with."""

    id: str
    config: DeviceConfig
    listen: str  # endpoint to bind, tcp://host:port
    advertise: str  # endpoint under which others reach it
    seeds: tuple[str, ...]  # endpoints of devices that may be there already
    out: str  # the run's folder
    cohort: int = 0  # devices that start together; 0: join whoever is there
    epoch_ns: int | None = None  # monotonic time of the run's start; None: now
    snapshot_every: int = 0  # rounds between snapshots for the harness; 0: none
    keys: NetworkKeys | None = None  # None: everything travels in the clear
    signing: bytes | None = field(default=None, repr=False)  # Ed25519 seed; None: kept in its folder
    keys_folder: str | None = None  # where SIGHUP has them read again; None: they stay as they are
    channel: Channel = NEAR  # how links behave
    health: str | None = None  # socket file on which its event loop says how it is (health.py)
    wall_clock: bool = False  # devices are on several hosts (transport/clocks/real.py)
    group: Mapping[str, str] = field(default_factory=dict)  # the address of every device of the run, if known
    life: int = 0  # how many processes of this id have been before in the run
    script: tuple[Scripted, ...] = ()  # virtual clock: what happens to this device


def process_main(spec: DeviceSpec, lifeline: Connection | None = None) -> None:
    """Entry point of a device that a launcher started. Ends the process with the device's exit status."""
    guard(lifeline)
    redirect_output(Path(spec.out) / "devices" / spec.id / "log.txt")
    try:
        code = run_device(spec)
    except (InputError, NoFreeSlot) as error:
        print(f"{spec.id}: {error}", file=sys.stderr)
        code = 2
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing of a library's exit handlers may keep a device alive


def run_device(spec: DeviceSpec) -> int:
    """Run one device in the foreground until it has finished, left or failed; returns its exit status.

    Raises InputError when the configuration does not fit the model or the data.
    """
    torch.set_num_threads(spec.config.model.threads)
    keep_freed_memory()
    plugins.load(spec.config.plugins)
    now_ns = RealClock(spec.wall_clock).now()
    epoch_ns = 0 if spec.config.clock == "virtual" else spec.epoch_ns or now_ns
    recorder = Recorder(Path(spec.out) / "devices" / spec.id, epoch_ns)
    try:
        return asyncio.run(_live(spec, recorder))
    finally:
        recorder.close()


async def _live(spec: DeviceSpec, recorder: Recorder) -> int:
    virtual = spec.config.clock == "virtual"
    # in virtual time no message may be lost, and nobody is judged by real time: all may be stopped for long
    timeless = Limits(high_water=1 << 16, linger_ms=10_000, heartbeat_ms=0, handshake_ms=0)
    limits = timeless if virtual else Limits()
    links = ZmqLinks(spec.id, spec.listen, spec.keys, limits)
    await links.start()  # first: what others send while the model loads waits in the socket
    try:
        if spec.keys_folder is not None:
            on_hangup(links, Path(spec.keys_folder), spec.id)
        learner = await asyncio.get_running_loop().run_in_executor(None, build_learner, spec)
        driver = Driver(spec, links, learner, recorder, _identity(spec, recorder))
        async with health.answering(spec.health, driver):
            return await driver.run()
    finally:
        await links.close()


def _identity(spec: DeviceSpec, recorder: Recorder) -> DeviceIdentity:
    if spec.signing is not None:
        return DeviceIdentity.generate(spec.signing)
    return DeviceIdentity.load_or_create(recorder.folder / "identity.key")


def build_learner(spec: DeviceSpec) -> Learner:
    """The model, the data and the bases of one device."""
    torch.set_num_threads(spec.config.model.threads)
    loaded = load_model(spec.config.model)
    task = tasks.get(spec.config.data.kind)(spec.config.data, spec.config.seed)
    examples = encode(task.train_examples(spec.id), loaded.tokenizer, spec.config.data.max_length)
    return Learner(loaded, spec.config, examples, spec.id)
