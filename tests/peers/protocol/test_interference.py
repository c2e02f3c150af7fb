"""The exchange of second moments of inputs after an event, in simulated time."""

from __future__ import annotations

import pytest

from peers.protocol import actions as do
from tests.support.simulated import Network, small_config
from transport.wire.limits import MAX_INPUTS
from transport.wire.messages import Inputs


def left(interference: bool = True, kind: str = "full") -> Network:
    """Five devices, of which d4 leaves."""
    settings = {"rounds": 20, "fisher": True, "interference": interference}
    net = Network(small_config(topology={"kind": kind}, correction=settings))
    net.cohort(5)
    net.rounds(3)
    net.signal("d4", "leave")
    net.rounds(3)
    return net


def kept(net: Network) -> dict[str, list[str]]:
    return {device.name: [k.source.device for k in device.done(do.KeepInputs)] for device in net}


@pytest.mark.parametrize(("kind", "count"), [("full", 3), ("ring", 2)])
def test_after_an_event_each_device_knows_the_inputs_of_its_neighbours(kind, count):
    for name, sources in kept(left(kind=kind)).items():
        assert len(sources) == len(set(sources)) == count
        assert not {name, "d4"} & set(sources)


def test_the_moments_are_measured_after_the_deletion_and_known_before_the_next_steps():
    for device in left():
        (measured,) = device.done(do.MeasureInputs)
        dropped = next(n for n, a in enumerate(device.told) if isinstance(a, do.DropBlock))
        assert device.told.index(measured) > dropped
        last = max(n for n, a in enumerate(device.told) if isinstance(a, do.KeepInputs))
        first = next(n for n, a in enumerate(device.told) if isinstance(a, do.Train) and a.anchor)
        assert last < first


def test_without_interference_aware_steps_nothing_is_measured_or_kept():
    net = left(interference=False)
    for device in net:
        assert not device.done(do.MeasureInputs)
        own = device.protocol.own
        assert own is not None
        key = own.key
        sender = "d1" if device.name == "d0" else "d0"
        message = Inputs(key.device, key.incarnation, bytes(4))
        assert not device.protocol.on_message(net.now, sender, message)


def test_moments_about_another_block_are_dropped():
    net = left()
    for block, incarnation in (("d1", 0), ("d0", 3), ("d4", 0)):
        made = net["d0"].protocol.on_message(net.now, "d1", Inputs(block, incarnation, bytes(4)))
        assert made == [do.Drop("unknown")]


def test_moments_that_no_message_holds_are_not_sent():
    net = left()
    own = net["d1"].protocol.own
    assert own is not None
    key = own.key
    made = net["d0"].protocol.inputs_measured(net.now, {key: bytes(MAX_INPUTS + 4)})
    assert [a.event for a in made if isinstance(a, do.Log)] == ["inputs_too_large"]
    assert not any(isinstance(a, do.Tell) for a in made)
