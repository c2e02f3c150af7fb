"""Partitions that heal, in simulated time: devices return with their values, leavers stay forgotten."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from coordinator_free.identifiers import BlockKey, Part
from peers.protocol import actions as do
from tests.support.simulated import GROUPS, SECOND, Network, small_config, still
from tests.support.simulated_checks import agreed, rest, trains

MODES = ["average", "newest"]
LEFT, RIGHT = ("d0", "d1", "d2", "d3"), ("d4", "d5", "d6", "d7")


def network(mode: str = "average", topology: str = "full", size: int = 8, **sections: object) -> Network:
    net = Network(small_config(mixing={"mode": mode}, topology={"kind": topology}, **sections))
    net.cohort(size, train_ns=SECOND // 2)
    net.rounds(2)
    return net


def split(net: Network, *side: str) -> None:
    net.loses = lambda source, target, message: (source in side) != (target in side)


def heal(net: Network) -> None:
    net.loses = lambda source, target, message: False


def own_values(net: Network) -> dict[str, np.ndarray]:
    return {d.name: d.values[Part(d.protocol.own.key, "early")].copy() for d in net if d.protocol.own}


def all_hold(net: Network, devices: Iterable[str]) -> bool:
    """Whether all devices hold exactly the blocks of these devices, equal to the owners' values."""
    owned = own_values(net)
    for device in net:
        blocks = {key.device: key for key in device.slots}
        if set(blocks) != set(devices) or len(device.slots) != len(blocks):
            return False
        held = {name: device.values[Part(key, "early")] for name, key in blocks.items()}
        if not all(np.allclose(held[name], owned[name], atol=1e-6) for name in held):
            return False
    return True


@pytest.mark.parametrize("topology", ["full", "ring"])
@pytest.mark.parametrize("mode", MODES)
def test_two_halves_with_a_leave_in_one_merge_into_the_seven_others(mode: str, topology: str) -> None:
    net = network(mode, topology)
    rest(net)
    before = own_values(net)
    split(net, *LEFT)
    net.run(10.0)
    assert [set(d.protocol.members.alive()) for d in net] == [set(LEFT)] * 4 + [set(RIGHT)] * 4
    net.signal("d2", "leave")
    net.run(10.0)
    heal(net)
    rest_of = [d for d in (*LEFT, *RIGHT) if d != "d2"]
    net.until(lambda: all(set(d.protocol.members.alive()) == set(rest_of) for d in net), 30.0)
    net.run(20.0)
    assert agreed(net) and all_hold(net, rest_of)
    for device in net:
        assert device.protocol.members.tombstoned(BlockKey("d2", 0))
        assert np.allclose(own_values(net)[device.name], before[device.name], atol=1e-6)  # nothing is lost
        assert {slot for key, slot in device.slots.items() if key.device == device.name} == {
            int(device.name[1:])  # each in its slot
        }


def test_a_partition_shorter_than_the_suspicion_changes_nothing() -> None:
    net = network()
    split(net, *LEFT)
    net.run(1.5)
    heal(net)
    net.run(10.0)
    assert agreed(net) and set(net["d0"].slots) == {BlockKey(f"d{i}", 0) for i in range(8)}


@pytest.mark.parametrize("mode", MODES)
def test_an_isolated_device_returns_with_its_values_and_gets_all_blocks(mode: str) -> None:
    net = network(mode, size=5)
    rest(net)
    before = own_values(net)["d3"]
    split(net, "d3")
    net.run(40.0)  # its local health is at its worst, so its timeouts are long
    assert set(net["d3"].protocol.members.alive()) == {"d3"}
    heal(net)
    net.until(lambda: all(len(d.protocol.members.alive()) == 5 for d in net), 30.0)
    net.run(5.0)
    assert agreed(net) and all_hold(net, [f"d{i}" for i in range(5)])
    assert np.allclose(own_values(net)["d3"], before, atol=1e-6)


def test_during_a_heal_the_copies_of_the_own_side_stay() -> None:
    """Each side has evicted the other, so all devices return under a new incarnation. The devices of the
    same side keep their copies and do not set them to zero."""
    net = network()
    rest(net)
    split(net, *LEFT)
    net.run(20.0)
    heal(net)
    lost = []

    def back() -> bool:
        for device in net:
            for other in LEFT if device.name in LEFT else RIGHT:
                held = [k for k in device.slots if k.device == other]
                if not any(device.values[Part(key, group)].any() for key in held for group in GROUPS):
                    lost.append((net.now, device.name, other))
        return all(len(d.protocol.members.alive()) == 8 for d in net)

    net.until(back, 30.0)
    assert lost == []


def test_a_slot_claimed_on_both_sides_ends_with_one_holder() -> None:
    net = network(adapter={"max_devices": 9}, membership={"quarantine_s": 2.0})
    net.signal("d7", "leave")
    net.run(5.0)
    split(net, *LEFT, "d9")
    net.run(10.0)
    net.add("d9", "d0", move=still)  # of 9 slots: it prefers 0, finds 7 and 8 free
    net.add("d8", "d4", move=still)  # prefers 8
    net.until(lambda: trains(net, "d9") and trains(net, "d8"))
    net.run(5.0)
    heal(net)
    net.until(lambda: all(len(d.protocol.members.alive()) == 9 for d in net), 60.0)
    net.run(10.0)
    assert agreed(net)
    slots = net["d0"].slots
    assert len(slots) == len(set(slots.values())) == 9


def test_an_evicted_device_that_returns_after_its_quarantine_claims_another_slot() -> None:
    net = network(size=4, adapter={"max_devices": 5}, membership={"quarantine_s": 3.0})
    split(net, "d3")
    net.run(20.0)
    net.add("d4", "d0")
    net.add("d8", "d0")  # prefers slot 3, of 5
    net.loses = lambda source, target, message: (source == "d3") != (target == "d3")
    net.until(lambda: trains(net, "d4") and trains(net, "d8"))
    assert sorted(net["d0"].slots.values()) == [0, 1, 2, 3, 4]
    net.signal("d2", "leave")
    net.run(10.0)
    heal(net)
    net.until(lambda: all(len(d.protocol.members.alive()) == 5 for d in net), 30.0)
    net.run(10.0)
    assert agreed(net)
    slots = {key.device: slot for key, slot in net["d0"].slots.items()}
    assert sorted(slots.values()) == [0, 1, 2, 3, 4] and slots["d3"] == 2


def test_an_evicted_device_is_tried_again_only_for_the_configured_time() -> None:
    net = network(size=3, membership={"reconnect_s": 20.0, "reconnect_every_s": 2.0})
    net.crash("d2")
    net.run(10.0)
    tried = len(calls(net, "d2"))
    net.run(15.0)
    assert len(calls(net, "d2")) > tried
    net.run(10.0)
    tried = len(calls(net, "d2"))
    net.run(60.0)
    assert len(calls(net, "d2")) == tried


def calls(net: Network, device: str) -> list[object]:
    """The number of links that were opened to a device."""
    return [c for d in net for c in d.done(do.Connect) if c.peer == device]


def test_a_crashed_device_is_tried_again_now_and_then() -> None:
    """All devices together try it about once in `reconnect_every_s`."""
    net = network(size=8)
    net.crash("d2")
    net.run(10.0)
    before = len(calls(net, "d2"))
    net.run(50.0)
    assert 3 <= len(calls(net, "d2")) - before <= 25
