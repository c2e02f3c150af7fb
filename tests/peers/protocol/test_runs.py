"""A statement that was signed in one run has no effect in another run with the same keys."""

from __future__ import annotations

from functools import partial

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Record, Status
from peers.protocol import actions as do
from tests.support.simulated import Network, small_config
from transport.security.keys import DeviceIdentity, verify
from transport.wire.messages import Gossip, Message, Stopping

D1 = BlockKey("d1", 0)


def run_named(name: str) -> Network:
    net = Network(small_config(topology={"kind": "full"}, membership={"leave_grace_s": 2.0}))
    net.cohort(3, run=name)
    net.rounds(2)
    return net


def recorded(net: Network, kind: type[Message], device: str = "d1") -> list[Message]:
    """The messages of a type that a device has sent."""
    return [a.message for a in net[device].done(do.Tell) if isinstance(a.message, kind)]


def replay(net: Network, messages: list[Message]) -> None:
    """d2 sends recorded messages to the others."""
    for name in ("d0", "d1"):
        for message in messages:
            net._handle(net[name], partial(net[name].protocol.on_message, source="d2", message=message))


def leave_of_an_earlier_run() -> list[Message]:
    earlier = run_named("monday")
    earlier.signal("d1", "leave")
    earlier.signal("d1", "leave")  # at once
    earlier.run(0.5)
    left = earlier["d0"].protocol.members.get(D1)
    assert left is not None and left.status is Status.LEFT
    return [Gossip([left.to_dict()], False, 0)]


def test_a_leave_of_an_earlier_run_is_refused_and_counted() -> None:
    net = run_named("tuesday")
    replay(net, leave_of_an_earlier_run())
    net.run(0.5)
    for device in net:
        assert D1 in device.slots and not device.protocol.members.tombstoned(D1)
        assert device.dropped["forged"] == (device.name != "d2")


def test_the_same_leave_counts_in_its_own_run() -> None:
    """The check of the test above: without another name, the recorded leave is a leave."""
    net = run_named("monday")
    replay(net, leave_of_an_earlier_run())
    net.run(0.5)
    assert all(device.protocol.members.tombstoned(D1) for device in net)


def test_a_stopping_message_of_an_earlier_run_is_refused() -> None:
    earlier = run_named("monday")
    for device in ("d0", "d1"):
        earlier.signal(device, "leave")
    earlier.run(0.1)
    told = [message for d in ("d0", "d1") for message in recorded(earlier, Stopping, d)]
    assert told
    net = run_named("tuesday")
    replay(net, told)
    assert all(net[name].dropped["forged"] >= 2 for name in ("d0", "d1"))
    net.signal("d2", "leave")
    net.run(3.0)
    assert net["d2"].exit == do.Exit(0, "leave")


def test_a_device_that_returns_in_its_run_is_the_same_device() -> None:
    net = run_named("monday")
    net.crash("d1")
    net.add("d1", "d0", "d2", run="monday")
    net.until(lambda: net["d1"].round >= 0)
    own = net["d1"].protocol.own
    assert own is not None and own.incarnation == 1


def test_a_device_of_another_run_is_refused_by_name() -> None:
    net = run_named("monday")
    other = net.add("d7", "d0", "d1", "d2", run="tuesday")
    net.until(lambda: other.exit is not None)
    assert other.exit is not None and other.exit.code == 1 and "it lacks run:monday" in other.exit.reason


def test_a_signature_names_its_run() -> None:
    identity = DeviceIdentity.generate()
    signed = identity.for_run("monday").sign(b"leave d1@0")
    assert verify(identity.public, b"leave d1@0", signed, "monday")
    assert not verify(identity.public, b"leave d1@0", signed, "tuesday")
    assert not verify(identity.public, b"leave d1@0", signed)


def test_records_hold_no_name_of_a_run() -> None:
    """The name is in the signed bytes only, so a record takes no more bytes on the wire."""
    assert "run" not in Record.__slots__
