"""Devices in this process with their real driver, protocol and sockets, on a small model, to be attacked.

The devices train a fixed number of rounds. At a given round one of them stops in its local steps, while both
go on receiving, until the attack is over: so what the others hold then does not depend on any timing.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from coordinator_free.correction.policy_interface import Settings
from peers.config import DeviceConfig
from peers.learning.learner import Learner
from peers.learning.local_steps import TrainResult
from peers.protocol.state_machine import Phase
from peers.runtime.driver import Driver
from peers.runtime.recorder import Recorder
from peers.runtime.spec import DeviceSpec
from peers.runtime.wiring import count_drop, make_driver
from tests.support.learners import small_config, small_learner
from tests.support.live_links import LISTEN
from tests.support.relay import Relay, relay
from transport.links.zmq_links import ZmqLinks
from transport.security.keys import DeviceIdentity, NetworkKeys
from transport.shaping.accounting import Accounts
from transport.wire.messages import Buffer

ROUNDS, HELD_ROUND = 6, 2
PATIENCE_S = 60.0
EVERYWHERE = "tcp://0.0.0.0:0"  # said to listen beyond this machine, so that payloads have a checksum
MakeLinks = Callable[[str, str, NetworkKeys | None], ZmqLinks]
Attack = Callable[[Mapping[str, "Device"], Relay], Awaitable[None]]


@dataclass
class Device:
    """A device that lives: what can be attacked and what can be seen of it."""

    driver: Driver
    links: ZmqLinks

    def refused(self) -> int:
        """Messages that arrived and were dropped, for whatever reason."""
        accounts = self.driver.accounts._links.values()
        return sum(sum(account.dropped_messages.values()) for account in accounts)

    def state(self) -> tuple[Any, ...]:
        """Membership, blocks and whom it is linked to."""
        protocol = self.driver.protocol
        members = [(r.device, r.incarnation, r.slot, int(r.status)) for r in protocol.members]
        return members, sorted(protocol.blocks), sorted(protocol.peers), protocol.round


@dataclass(frozen=True)
class Outcome:
    """What was left when all devices had finished."""

    states: dict[str, tuple[Any, ...]]
    adapters: dict[str, str]  # sha256 of each exported adapter
    events: dict[str, dict[str, int]]  # security events that the run's files tell of
    refused: dict[str, int]

    @property
    def result(self) -> tuple[Any, ...]:
        """All that no attack may change."""
        return self.states, self.adapters


@dataclass
class Hold:
    """Stops a learner at the beginning of a round's local steps."""

    reached: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def on(self, learner: Learner) -> None:
        train = learner.train

        def held(
            round: int, steps: int, rehearse: bool, settings: Settings | None = None, fisher: bool = False
        ) -> TrainResult:
            if round == HELD_ROUND:
                self.reached.set()
                assert self.over.wait(PATIENCE_S), "the attack did not end"
            return train(round, steps, rehearse, settings, fisher)

        learner.train = held  # type: ignore[method-assign]


def live(
    folder: Path,
    attack: Callable[[Mapping[str, Device]], Awaitable[None]] | None = None,
    keys: Mapping[str, NetworkKeys] | None = None,
    make: MakeLinks = ZmqLinks,
    mode: str = "average",
    attack_on_the_way: Attack | None = None,
    deadline_s: float = PATIENCE_S,
) -> Outcome:
    """d0 and d1 learn together; `attack` happens while d0 waits for d1, whose local steps are held.

    `deadline_s`: of a round, and of a suspicion.
    `make`: a device's links. `attack_on_the_way` is also given what all that d0 is sent has passed through.
    """

    async def both(devices: Mapping[str, Device], way: Relay) -> None:
        if attack is not None:
            await attack(devices)
        if attack_on_the_way is not None:
            await attack_on_the_way(devices, way)

    return asyncio.run(_live(folder, both, keys or {}, make, mode, deadline_s))


async def _live(
    folder: Path,
    attack: Attack,
    keys: Mapping[str, NetworkKeys],
    make: MakeLinks,
    mode: str,
    deadline_s: float,
) -> Outcome:
    config = small_config(
        round={"count": ROUNDS, "local_steps": 1, "deadline_s": deadline_s},
        membership={"crash_after_s": deadline_s},
        mixing={"mode": mode},
    )
    links = {name: make(name, LISTEN, keys.get(name)) for name in ("d0", "d1")}
    hold = Hold()
    async with AsyncExitStack() as stack:
        accounts = {name: Accounts() for name in links}
        for name, end in links.items():
            await end.start(count_drop(accounts[name]))
            stack.push_async_callback(end.close)
        way = await stack.enter_async_context(relay(links["d0"].address))
        addresses = {"d0": way.address, "d1": links["d1"].address}
        devices = {}
        for name, end in links.items():
            recorder = Recorder(folder / "devices" / name, 0)
            stack.callback(recorder.close)
            spec = _spec(name, config, addresses, folder, keys.get(name))
            learner = await asyncio.to_thread(partial(small_learner, device=name))
            own_keys = keys.get(name)
            listed = None if own_keys is None else own_keys.identity()
            identity = listed or DeviceIdentity.generate(name.encode() * 16)
            driver = make_driver(spec, end, accounts[name], learner, recorder, identity)
            devices[name] = Device(driver, end)
            if name == "d1":
                hold.on(learner)
        stack.callback(hold.over.set)
        await asyncio.gather(*(d.driver.run() for d in devices.values()), _attack(attack, devices, way, hold))
    return _outcome(folder, devices)


def _spec(
    name: str, config: DeviceConfig, addresses: Mapping[str, str], folder: Path, keys: NetworkKeys | None
) -> DeviceSpec:
    seeds = tuple(address for other, address in addresses.items() if other != name)
    where = (EVERYWHERE, addresses[name], seeds, str(folder), len(addresses))
    return DeviceSpec(name, config, *where, epoch_ns=0, keys=keys)


async def _attack(attack: Attack, devices: Mapping[str, Device], way: Relay, hold: Hold) -> None:
    try:
        assert await asyncio.to_thread(hold.reached.wait, PATIENCE_S), "no round was reached"
        waiting = devices["d0"].driver.protocol
        await until(lambda: (waiting.round, waiting.phase) == (HELD_ROUND, Phase.WAIT))
        await attack(devices, way)
    finally:
        hold.over.set()


def _outcome(folder: Path, devices: Mapping[str, Device]) -> Outcome:
    adapters, events = {}, {}
    for name in devices:
        lines = (folder / "devices" / name / "events.jsonl").read_text().splitlines()
        by_name = {record["event"]: record for record in map(json.loads, lines)}
        adapters[name] = by_name["exported"]["adapter_sha256"]
        events[name] = by_name["finished"]["security_events"]
    states = {name: device.state() for name, device in devices.items()}
    return Outcome(states, adapters, events, {name: device.refused() for name, device in devices.items()})


async def until(true: Callable[[], bool]) -> None:
    """Until what others do in their own time has been done; fails at the deadline."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def send_all(links: ZmqLinks, peer: str, messages: Sequence[Sequence[Buffer]]) -> None:
    """Send, waiting for room where there is none."""
    for message in messages:
        while not links.send(peer, message):
            await links.wait_writable(peer, PATIENCE_S)
