"""A plugin that turns some devices of a run into hostile members (`unweft bench hostile`, `churn --hostile`).

A hostile device runs the honest code, and beside it sends hostile messages to all devices on its links.
VARIABLE names the devices and the rest of the attack. The plugin changes no other device.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import peers.runtime.main as device
from emulation.bench.harness.hostile_messages import HostileMessages
from peers.learning.learner import Learner
from peers.runtime.driver import Driver
from peers.runtime.recorder import Recorder
from peers.runtime.spec import DeviceSpec
from peers.runtime.wiring import make_driver
from transport.links.interface import Links
from transport.security.keys import DeviceIdentity
from transport.shaping.accounting import Accounts

MODULE = __name__
VARIABLE = "UNWEFT_BENCH_HOSTILE"
FILE = "hostile.json"  # in the folder of a hostile device: how many messages it has sent
BATCH = 20  # messages between two pauses
_tasks: set[asyncio.Task[None]] = set()


def attack(devices: list[str], messages: int, per_second: float, **options: bool) -> str:
    """The value of VARIABLE. `messages`: of each hostile device."""
    return json.dumps(
        {"devices": devices, "messages": messages, "per_second": per_second, "options": options}
    )


def _make_driver(
    spec: DeviceSpec,
    links: Links,
    accounts: Accounts,
    learner: Learner,
    recorder: Recorder,
    identity: DeviceIdentity,
) -> Driver:
    driver = make_driver(spec, links, accounts, learner, recorder, identity)
    plan = json.loads(os.environ.get(VARIABLE, "{}"))
    if spec.id in plan.get("devices", ()):
        source = HostileMessages(
            (spec.config.seed, spec.id),
            spec.id,
            identity.for_run(spec.run),
            learner.groups,
            rounds=spec.config.round.count,
            slots=spec.config.adapter.max_devices,
            **plan["options"],
        )
        task = asyncio.get_running_loop().create_task(_attack(driver, links, source, recorder.folder, plan))
        _tasks.add(task)
    return driver


async def _attack(
    driver: Driver, links: Links, source: HostileMessages, folder: Path, plan: Mapping[str, Any]
) -> None:
    protocol, sent, pause_s = driver.protocol, 0, BATCH / plan["per_second"]
    for seq in count(time.time_ns()):
        if sent >= plan["messages"]:
            break
        if protocol.round < 0:
            await asyncio.sleep(0.1)
            continue
        for peer in [name for name, known in sorted(protocol.peers.items()) if known.greeted]:
            source.members, source.epoch = list(protocol.members), protocol.round
            sent += links.send(peer, source.next_frames(time.monotonic_ns(), seq))
        if seq % BATCH == 0:
            (folder / FILE).write_text(json.dumps({"sent": sent}), encoding="utf-8")
            await asyncio.sleep(pause_s)
    (folder / FILE).write_text(json.dumps({"sent": sent}), encoding="utf-8")


setattr(device, "make_driver", _make_driver)  # noqa: B010 - a name that the module does not export
