"""The process of one device, from the launcher's call to the exit status.

`wiring` joins the parts, `peers.protocol` decides, and `driver` performs.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from coordinator_free.membership.slots import NoFreeSlot
from coordinator_free.ranges import DEVICE_ID_ALLOWED, valid_device_id
from peers import plugins
from peers.config import DeviceConfig
from peers.errors import InputError, describe
from peers.learning.learner import Learner
from peers.learning.privacy_account import check_delta
from peers.models.data_limits import check_data
from peers.models.loader import LoadedModel, load_model
from peers.runtime import address_book, health, partition
from peers.runtime.child_process import end_process, guard, redirect_output
from peers.runtime.key_rotation import rotate_on_hangup
from peers.runtime.recorder import Recorder
from peers.runtime.spec import DeviceSpec
from peers.runtime.wiring import MakeDriver, count_drop, make_driver
from peers.tasks import Batch, make_task
from transport.clocks.real import RealClock
from transport.links.malloc import keep_freed_memory
from transport.links.zmq_dealer import Limits
from transport.links.zmq_links import ZmqLinks
from transport.security.keys import DeviceIdentity
from transport.shaping.accounting import Accounts

log = logging.getLogger("unweft")
MakeLearner = Callable[[LoadedModel, DeviceConfig, Batch, str], Learner]  # model, config, own data, device id


def process_main(
    spec: DeviceSpec, lifeline: Connection | None = None, make: MakeDriver = make_driver
) -> None:
    """Run a device in a process that a launcher started. Ends the process with the device's exit status.

    `make`: joins the parts of the device (wiring.py).
    """
    partition.ignore()
    guard(lifeline)
    redirect_output(Path(spec.out) / "devices" / spec.id / "log.txt")
    try:
        code = run_device(spec, make)
    except (InputError, NoFreeSlot) as error:
        print(f"{spec.id}: {error}", file=sys.stderr)
        code = 2
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = 1
    end_process(code)


def run_device(spec: DeviceSpec, make: MakeDriver = make_driver) -> int:
    """Run one device until it has finished, left or failed; returns its exit status.

    Raises InputError when the configuration does not fit the model or the data.
    """
    if not valid_device_id(spec.id):
        raise InputError(f"id: {spec.id!r} is no device id; allowed: {DEVICE_ID_ALLOWED}")
    torch.set_num_threads(spec.config.model.threads)
    keep_freed_memory()
    now_ns = RealClock(spec.wall_clock).now()
    epoch_ns = -spec.elapsed_ns if spec.config.clock == "virtual" else spec.epoch_ns or now_ns
    recorder = Recorder(Path(spec.out) / "devices" / spec.id, epoch_ns, spec.life)
    try:
        plugins.load(spec.config.plugins)
        return asyncio.run(_run(spec, recorder, make))
    except Exception as error:
        with suppress(OSError):  # the disk may be full
            recorder.event(RealClock(spec.wall_clock).now(), -1, "failed", {"reason": describe(error)})
        raise
    finally:
        recorder.close()


async def _run(spec: DeviceSpec, recorder: Recorder, make: MakeDriver) -> int:
    virtual = spec.config.clock == "virtual"
    # Under the virtual clock no message may be lost, and a device may pause for long in real time.
    timeless = Limits(high_water=1 << 16, linger_ms=10_000, heartbeat_ms=0, handshake_ms=0)
    limits = timeless if virtual else Limits()
    links, accounts = ZmqLinks(spec.id, spec.listen, spec.keys, limits), Accounts()
    await links.start(count_drop(accounts))  # first: messages wait in the socket while the model loads
    try:
        if spec.keys_folder is not None:
            rotate_on_hangup(links, Path(spec.keys_folder), spec.id)
        with address_book.listed(spec, links.address) as listed:
            learner = await asyncio.get_running_loop().run_in_executor(None, build_learner, spec)
            found = address_book.with_seeds(listed)
            driver = make(found, links, accounts, learner, recorder, identity_of(spec, recorder))
            async with health.answering(spec.health, driver.status):
                return await driver.run()
    finally:
        await links.close()


def identity_of(spec: DeviceSpec, recorder: Recorder) -> DeviceIdentity:
    listed = None if spec.keys is None else spec.keys.identity()
    if listed is not None:
        return listed
    if spec.signing is not None:
        return DeviceIdentity.generate(spec.signing)
    return DeviceIdentity.load_or_create(recorder.folder / "identity.key")


def build_learner(spec: DeviceSpec, make: MakeLearner = Learner) -> Learner:
    """Load the model, the data and the bases of one device. `make`: the learner of these."""
    torch.set_num_threads(spec.config.model.threads)
    loaded = load_model(spec.config.model)
    examples, most = make_task(spec.config).train_examples(spec.id), spec.config.data.max_length
    encoded = loaded.encode(examples, most)
    for note in loaded.notes({spec.id: (examples, encoded)}, most):
        log.warning(note)
    check_data(loaded, [(spec.id, encoded)])
    check_delta(spec.config.privacy, {spec.id: len(encoded)})
    return make(loaded, spec.config, encoded, spec.id)
