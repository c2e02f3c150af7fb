"""Failure detection in simulated time: agreement, detected crashes, no false verdicts, few links."""

from __future__ import annotations

import math
import random
from functools import partial
from typing import Any

import pytest

from coordinator_free.identifiers import BlockKey
from peers.protocol import actions as do
from tests.support.simulated import MILLI, SECOND, Network, SimDevice, small_config
from tests.support.simulated_checks import agreed, has_gone, started, trains
from transport.wire.messages import Ack, PingRequest, Suspect

PERIOD_NS = SECOND // 2  # membership.probe_s


def network(size: int, seed: int = 0, loss: float = 0.0, **sections: Any) -> Network:
    """A network that just started: random latencies up to 20 ms, lost messages, rounds of half a second."""
    draw = random.Random(seed)
    config = small_config(seed=seed, **{"adapter": {"max_devices": 16}, **sections})
    net = Network(config, lambda: draw.randint(1, 20) * MILLI)
    net.loses = lambda source, target, message: draw.random() < loss
    net.cohort(size, train_ns=500 * MILLI)
    return net


def knows_all(device: SimDevice, count: int) -> bool:
    return len(device.protocol.members.alive()) == count


def given_up(net: Network) -> list[object]:
    """The devices that any device declared crashed."""
    return [log["peer"] for device in net.everyone for log in device.logged("confirmed")]


def test_an_idle_device_wakes_once_a_period_for_its_timers() -> None:
    """Each wake-up of a process costs CPU time. The upkeep goes with the probe."""
    net, seconds = Network(small_config()), 20
    for name in ("d0", "d1"):
        net.add(name, *({"d0"} - {name}), cohort=3)  # they wait for a third one
    net.until(lambda: all(knows_all(device, 2) for device in net), 5.0)
    ticks, inner = list[int](), net["d0"].protocol.tick

    def tick(now: int) -> list[do.Action]:
        ticks.append(now)
        return inner(now)

    net["d0"].protocol.tick = tick  # type: ignore[method-assign]
    net.run(seconds)
    periods = seconds * SECOND // PERIOD_NS
    assert periods <= len({*ticks}) + 1 and len({*ticks}) <= 1.3 * periods  # and tables, once in a while


# -- agreement -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["full", "ring"])
@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_sixteen_devices_started_together_agree_within_a_second(topology: str, loss: float) -> None:
    net = network(16, loss=loss, topology={"kind": topology})
    net.until(lambda: all(knows_all(device, 16) for device in net), 1.0)
    assert agreed(net)


def test_thirty_two_devices_get_a_slot_each() -> None:
    net = network(32, topology={"kind": "ring"}, adapter={"max_devices": 32, "rank": 4})
    net.until(lambda: all(knows_all(device, 32) for device in net), 2.0)
    net.run(1.0)
    assert agreed(net) and sorted(net["d0"].slots.values()) == list(range(32))


def test_devices_that_know_one_other_device_find_all() -> None:
    net = Network(small_config(topology={"kind": "ring"}))
    for number in range(8):
        net.add(f"d{number}", *([f"d{number - 1}"] if number else []), cohort=8)
    net.until(lambda: all(knows_all(device, 8) for device in net), 1.0)
    assert agreed(net)


def test_a_seed_that_starts_late_is_found() -> None:
    net = Network(small_config())
    net.add("d1", "d0", cohort=2)
    net.run(10.0)
    net.add("d0", cohort=2)
    net.until(lambda: all(device.round >= 0 for device in net), 40.0)
    net.run(5.0)
    assert agreed(net) and len(net["d0"].slots) == 2


def test_on_a_ring_a_leave_reaches_all_devices_within_log_n_hops() -> None:
    net = network(16, topology={"kind": "ring"})
    net.until(lambda: all(device.round >= 1 for device in net))
    net.signal("d5", "leave")
    net.until(lambda: has_gone(net, BlockKey("d5", 0)), math.log2(16) * 0.02)


def test_a_ping_reveals_a_record_that_gossip_lost() -> None:
    net = started(4)
    net.loses = lambda source, target, message: source == "d2"
    net.signal("d2", "leave")  # no device receives it ...
    net.crash("d2")
    net.loses = lambda source, target, message: False
    tombstone = net["d2"].protocol.members.get(BlockKey("d2", 0))
    assert tombstone is not None
    net["d0"].protocol.members.merge([tombstone])  # ... except d0, which has not told it
    net.until(lambda: all(d.protocol.members.tombstoned(BlockKey("d2", 0)) for d in net), 2.0)


# -- detected crashes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "topology"), [(8, "full"), (16, "ring")])
def test_a_crash_is_suspected_within_some_periods_and_known_to_all_within_5_s(
    size: int, topology: str
) -> None:
    for seed in range(3):
        net = network(size, seed, topology={"kind": topology})
        net.until(lambda: all(device.round >= 1 for device in net))  # noqa: B023
        net.crash("d3")
        at = net.now
        net.until(lambda: any(device.logged("suspected") for device in net), 3.0)  # noqa: B023
        net.until(lambda: all(not knows_all(device, size) for device in net), 5.0)  # noqa: B023
        assert net.now - at <= 5 * SECOND
        assert given_up(net).count("d3") == len(given_up(net))


def test_the_survivor_of_two_devices_detects_the_crash() -> None:
    net = network(2)
    net.until(lambda: all(device.round >= 1 for device in net))
    net.crash("d1")
    net.until(lambda: knows_all(net["d0"], 1), 5.0)


def test_the_crash_of_half_of_the_devices_is_detected() -> None:
    net = network(8, topology={"kind": "ring"})
    net.until(lambda: all(device.round >= 1 for device in net))
    for device in ("d0", "d2", "d4", "d6"):
        net.crash(device)
    net.until(lambda: all(knows_all(device, 4) for device in net), 30.0)
    net.until(lambda: agreed(net), 4.0)  # each device counts the grace of the blocks from its own verdict
    assert set(given_up(net)) == {"d0", "d2", "d4", "d6"}


# -- no false verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_no_live_device_is_declared_crashed_with_5_percent_loss_and_busy_devices(seed: int) -> None:
    """Each device stalls for up to 0.4 s about every second, as on a shared processor."""
    net = network(8, seed, loss=0.05, topology={"kind": "ring"})
    draw = random.Random(seed)

    def busy(device: str) -> None:
        net.stall(device, draw.random() * 0.4)
        net.at(net.now + draw.randrange(2 * SECOND), partial(busy, device))

    for device in list(net):
        busy(device.name)
    net.run(60.0)
    assert given_up(net) == []
    assert all(device.protocol.own is not None and device.protocol.own.incarnation == 0 for device in net)


def test_stalls_shorter_than_the_suspicion_timeout_change_no_incarnation() -> None:
    net = network(8)
    net.until(lambda: all(device.round >= 1 for device in net))
    for number in range(8):
        net.stall(f"d{number}", 1.9)  # low = 4 max(1, log10 8) 0.5 s = 2 s
        net.run(4.0)
    assert given_up(net) == []


def test_two_devices_without_a_link_between_them_stay_alive_through_helpers() -> None:
    net = network(4)
    net.until(lambda: all(device.round >= 1 for device in net))
    net.loses = lambda source, target, message: {source, target} == {"d1", "d2"}
    net.run(30.0)
    assert given_up(net) == []
    asked = [t.message for t in net["d1"].done(do.Tell) if isinstance(t.message, PingRequest)]
    assert {message.target for message in asked} == {"d2"}


def test_a_suspected_device_refutes_and_all_devices_accept_it() -> None:
    net = network(4)
    net.until(lambda: all(device.round >= 1 for device in net))
    net.loses = lambda source, target, message: source == "d2" and isinstance(message, Ack)
    net.until(lambda: any(log["peer"] == "d2" for d in net for log in d.logged("suspected")), 5.0)
    net.loses = lambda source, target, message: False
    net.run(20.0)
    assert net["d2"].logged("refuted") and given_up(net) == []


def test_a_lost_refutation_is_repeated() -> None:
    """With two devices there is no other path."""
    net = network(2)
    net.until(lambda: all(device.round >= 1 for device in net))
    net.loses = lambda source, target, message: source == "d1" and not isinstance(message, Suspect)
    net.until(lambda: bool(net["d1"].logged("refuted")), 5.0)
    net.loses = lambda source, target, message: False
    net.run(20.0)
    assert given_up(net) == []


def test_a_late_device_does_not_declare_finished_devices_crashed() -> None:
    net = Network(small_config(round={"count": 4}, topology={"kind": "ring"}))
    net.cohort(6)
    net["d3"].train_ns = 5 * SECOND
    net.until(lambda: not list(net))
    assert given_up(net) == [] and len(net["d3"].slots) == 6


# -- links -----------------------------------------------------------------------------------------------


def test_a_device_has_few_links_and_closes_unneeded_ones() -> None:
    net = network(24, topology={"kind": "ring"}, adapter={"max_devices": 24})
    net.until(lambda: all(device.round >= 1 for device in net))
    net.run(12.0)  # membership.idle_s = 5
    counts = [len(device.links) for device in net]
    assert sum(counts) / len(counts) <= 2 + 2 * 3 + 1  # neighbours, picks of both sides, a visitor
    assert given_up(net) == []


def test_a_member_without_a_link_is_answered_and_greeted() -> None:
    net = started(4)
    net["d0"].protocol._connections.disconnect("d2")
    net["d0"].links.pop("d2")
    net.run(5.0)
    assert given_up(net) == [] and net["d0"].protocol.peers["d2"].greeted


def test_a_waiting_joiner_gets_a_slot_once_all_devices_confirmed_the_deletion() -> None:
    net = started(4, adapter={"max_devices": 4}, membership={"quarantine_s": 1000.0})
    net.signal("d2", "leave")
    net.run(0.1)
    net.add("d9", "d0")
    net.until(lambda: trains(net, "d9"), 20.0)
    assert net["d9"].slots[BlockKey("d9", 0)] == 2


def test_a_slot_is_not_taken_before_all_devices_confirmed_or_its_quarantine_ended() -> None:
    net = started(4, adapter={"max_devices": 4}, membership={"quarantine_s": 30.0})
    net.stall("d3", 1.8)  # it cannot confirm yet
    net.signal("d2", "leave")
    net.run(0.1)
    net.add("d9", "d0")
    net.run(1.5)
    assert net["d9"].protocol.own is None and net["d9"].logged("waits_for_slot")
    net.until(lambda: trains(net, "d9"), 20.0)
