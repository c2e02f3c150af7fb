"""A member sends hostile messages of all types to devices of the simulated network.

`unweft bench hostile` does the same to processes. Here the clock is simulated, so each fault can be found
again by its seed.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
import pytest

from coordinator_free.identifiers import BlockKey
from emulation.bench.harness.hostile_messages import HostileMessages
from peers.protocol import actions as do
from tests.support import simulated
from tests.support.signatures import public, sign_as
from tests.support.simulated import Network, SimDevice, small_config
from tests.support.simulated_checks import has_gone
from transport.wire.errors import WireError
from transport.wire.messages import Envelope, Message, Updates
from transport.wire.packing import pack, unpack

HOSTILE, LEAVER, SLOTS, ROUNDS = "d4", "d3", 8, 1_000_000
FIRST = 1 << 61  # sequence number of the first hostile message: above those of the honest ones
PAUSE_S = 0.02


class Identity:
    """Signs as a device of the simulated network."""

    def __init__(self, device: str) -> None:
        self.device, self.public, self.run = device, public(device), ""

    def sign(self, data: bytes) -> bytes:
        return sign_as(self.device, data)

    def for_run(self, run: str) -> Identity:
        return self


def network() -> Network:
    net = Network(
        small_config(
            mixing={"mode": "average", "tolerance": 0.02},
            round={"count": ROUNDS, "deadline_s": 2.0},
            adapter={"max_devices": SLOTS},
        )
    )
    net.cohort(5)
    net.rounds(3)
    return net


def hostile_messages(net: Network, seed: int) -> HostileMessages:
    greeting = net[HOSTILE].protocol._connections._hello(reply=True)
    identity: Any = Identity(HOSTILE)
    source = HostileMessages(
        *((seed, HOSTILE), HOSTILE, identity, simulated.GROUPS, greeting), rounds=ROUNDS, slots=SLOTS
    )
    source.ghosts = {name: cast(Any, Identity(name)) for name in source.ghosts}
    return source


def deliver(net: Network, device: SimDevice, envelope: Envelope, message: Message) -> None:
    handles = [partial(simulated._receive, envelope, message, device)]
    if isinstance(message, Updates):
        zeros = np.zeros(simulated.WIDTH)
        handles = [partial(simulated._take, HOSTILE, header, zeros, device) for header in message.headers]
    for handle in handles:
        net.at(net.now + 1, partial(net._handle, device, handle))


def check_held(device: SimDevice) -> None:
    """A device holds the blocks of its table and no others, and its manifest can be sent."""
    held = {part.block for part in device.protocol.exchange.held}
    own = device.protocol.own
    assert held == set(device.protocol.blocks)
    assert len(held) <= 2 * SLOTS + 1
    assert own is None or own.key in held
    for publish in device.done(do.Publish)[-1:]:
        pack(Envelope(device.name, 0, 0, 0, 0), publish.manifest)


def storm(seed: int, steps: int) -> None:
    """One message to each honest device a step; a device leaves after half of the steps."""
    net = network()
    source, delivered = hostile_messages(net, seed), 0
    stay = ("d0", "d1", "d2")
    rounds = {device: net[device].round for device in stay}
    for number in range(steps):
        hostile = net[HOSTILE].protocol
        source.members, source.epoch = list(hostile.members), hostile.round
        for device in [d for d in net if d.name != HOSTILE]:
            try:
                envelope, message = unpack(source.next_frames(net.now, FIRST + number))
            except WireError:
                continue
            deliver(net, device, envelope, message)
            delivered += 1
        net.run(PAUSE_S)
        for device in [d for d in net if d.name != HOSTILE]:
            check_held(device)
        if number == steps // 2:
            net.signal(LEAVER, "leave")
    net.run(5.0)
    assert net[LEAVER].exit == do.Exit(0, "leave")
    assert has_gone(net, BlockKey(LEAVER, 0))
    assert all(net[device].exit is None for device in stay)
    assert all(net[device].round >= rounds[device] + steps // 100 for device in stay)
    refused = sum(len([d for d in net[device].done(do.Drop) if d.reason == "stranger"]) for device in stay)
    assert delivered > 2 * steps and refused < delivered / 2  # most messages came from a greeted member


def test_hostile_messages_leave_only_the_blocks_of_the_table() -> None:
    storm(seed=5, steps=100)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_hostile_messages_leave_only_the_blocks_of_the_table(seed: int) -> None:
    storm(seed, steps=3000)
