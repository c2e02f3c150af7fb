"""Joining: a newcomer gets every block, changes none, and begins with the network's next round."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator_free.identifiers import BlockKey, Part
from peers.protocol import actions as do
from peers.protocol.state_machine import Phase
from tests.support.simulated import GROUPS, MILLI, PART_BYTES, Network, SimDevice, Values, still
from tests.support.simulated_checks import agreed, rest, started, trains
from transport.wire.messages import Gossip, Request, Update

MODES = ["average", "newest"]


def copies(device: SimDevice, but: str = "") -> dict[Part, Values]:
    return {part: v.copy() for part, v in device.values.items() if part.block.device != but}


def same(a: dict[Part, Values], b: dict[Part, Values]) -> bool:
    return a.keys() == b.keys() and all(np.allclose(a[part], b[part], atol=1e-9) for part in a)


def mixed_with(net: Network) -> dict[tuple[str, int], set[str]]:
    """The neighbours that each device mixed with, by device and round."""
    return {(d.name, record.round): {*record.weights} for d in net for record in d.done(do.RoundDone)}


def requests(device: SimDevice) -> list[str]:
    """The devices that it asked for blocks, in order."""
    return [told.peer for told in device.done(do.Tell) if isinstance(told.message, Request)]


@pytest.mark.parametrize("topology", ["full", "ring"])
@pytest.mark.parametrize("mode", MODES)
def test_a_joiner_gets_every_block_and_changes_none(mode: str, topology: str) -> None:
    net = started(4, mode, topology={"kind": topology})
    rest(net)
    before = {device.name: copies(device) for device in net}
    net.add("d4", "d0", move=still)
    net.until(lambda: trains(net, "d4"))
    assert same(copies(net["d4"], but="d4"), before["d0"])
    assert not any(net["d4"].values[Part(BlockKey("d4", 0), group)].any() for group in GROUPS)
    net.rounds(5)
    assert agreed(net)
    for device in net:
        assert same(copies(device, but="d4"), before.get(device.name, before["d0"]))


def test_a_joiner_begins_with_the_next_round_of_the_network() -> None:
    net = started()
    net.add("d4", "d0")
    net.until(lambda: trains(net, "d4"))
    network = max(device.round for device in net if device.name != "d4")
    assert network <= net["d4"].round <= network + 1  # the next round that it knows of
    first = net["d4"].round
    net.rounds(6)
    for device in net:
        members = {record.round: record.members for record in device.done(do.RoundDone)}
        assert members.get(first - 1, ()) == () or "d4" not in members[first - 1]
        assert members[first] == ("d0", "d1", "d2", "d3", "d4")


@pytest.mark.parametrize("topology", ["full", "ring"])
def test_in_the_first_round_of_a_joiner_mixing_is_mutual(topology: str) -> None:
    """Its record may arrive after they have sent that round's data."""
    for pause_ms in range(0, 100, 10):
        net = started(topology={"kind": topology})
        net.run(pause_ms / 1000)
        net.add("d4", "d0")
        net.until(lambda net=net: trains(net, "d4"))  # type: ignore[misc]
        first = net["d4"].round
        net.rounds(6)
        mixed = mixed_with(net)
        for name in mixed["d4", first]:
            assert "d4" in mixed[name, first]
        assert all(("d4" in mixed[d, first]) == (d in mixed["d4", first]) for d in ("d0", "d1", "d2", "d3"))
        assert mixed["d4", first]


def test_a_joiner_makes_no_other_device_wait_or_skip_a_round() -> None:
    net = started()
    net.add("d4", "d0")
    net.run(3.0)
    for device in net:
        records = device.done(do.RoundDone)
        rounds = [record.round for record in records]
        assert rounds == list(range(rounds[0], rounds[0] + len(rounds)))
        waits = [record.end_ns - record.start_ns for record in records if record.round != rounds[0]]
        assert max(waits) <= 200 * MILLI


@pytest.mark.parametrize("topology", ["full", "ring"])
def test_a_transfer_that_takes_rounds_ends_before_a_round_in_which_both_sides_mix(topology: str) -> None:
    net = started(topology={"kind": topology})
    for device in net:
        device.budget_bytes = 14 * PART_BYTES
    net.add("d4", "d0")
    net.until(lambda: trains(net, "d4"), 120.0)
    first = net["d4"].round
    net.rounds(4)
    mixed = mixed_with(net)
    assert all(("d4" in mixed[d, first]) == (d in mixed["d4", first]) for d in ("d0", "d1", "d2", "d3"))


def test_a_joiner_requests_a_different_block_from_each_neighbour() -> None:
    net = started()
    net.add("d4", "d0")
    net.until(lambda: trains(net, "d4"))
    asked = [told for told in net["d4"].done(do.Tell) if isinstance(told.message, Request)]
    assert sorted(told.peer for told in asked) == ["d0", "d1", "d2", "d3"]
    assert all({item[0] for item in told.message.items} == {told.peer} for told in asked)


def test_a_transfer_stays_within_the_budget_of_the_helper_and_has_its_own_cause() -> None:
    net = started()
    for device in net:
        device.budget_bytes = 3 * PART_BYTES
    net.add("d4", "d0")
    net.until(lambda: trains(net, "d4"), 120.0)
    sent = [action for device in net for action in device.done(do.Publish) if action.peer == "d4"]
    carried = {part for action in sent for part, _, cause in action.parts if cause == "transfer"}
    assert carried >= {Part(BlockKey(f"d{i}", 0), group) for i in range(4) for group in GROUPS}


def test_when_a_helper_crashes_during_a_transfer_another_helper_is_asked() -> None:
    net = started()
    for device in net:
        device.budget_bytes = 6 * PART_BYTES  # not all at once
    net.add("d4", "d0")
    net.until(lambda: len(net["d4"].done(do.Apply)) >= 2)
    assert net["d4"].protocol.phase is Phase.JOIN
    first = requests(net["d4"])[0]
    net.crash(first)
    net.until(lambda: trains(net, "d4"), 10.0)
    assert requests(net["d4"])[1] != first
    net.run(10.0)
    assert agreed(net)


def test_another_helper_is_asked_once_the_first_is_known_to_be_gone() -> None:
    net = started(round={"deadline_s": 60.0})
    for device in net:
        device.budget_bytes = PART_BYTES  # not all at once
    net.add("d4", "d0")
    net.until(lambda: len(net["d4"].done(do.Apply)) >= 2)
    asked = requests(net["d4"])
    net.crash(asked[0])
    net.until(lambda: len(requests(net["d4"])) > len(asked), 10.0)
    net.until(lambda: trains(net, "d4"), 100.0)


@pytest.mark.parametrize("mode", MODES)
def test_a_retired_block_that_nobody_mixed_with_makes_no_joiner_wait(mode: str) -> None:
    net = started(3, mode)
    net.add("d3", "d0")
    net.until(lambda: trains(net, "d3"))
    net.signal("d3", "retire")
    net.run(1.0)
    assert not net["d3"].live
    assert not any(values.any() for part, values in net["d0"].values.items() if part.block.device == "d3")
    net.add("d4", "d0")
    net.until(lambda: trains(net, "d4"), 2.0)
    assert BlockKey("d3", 0) in net["d4"].slots
    net.rounds(3)
    assert agreed(net)


def test_joiners_ask_training_devices_and_not_each_other() -> None:
    net = started(5)
    for device in ("d3", "d4"):
        net.signal(device, "retire")
    net.run(1.0)
    joiners = ("d5", "d6", "d7")
    for device in joiners:
        net.add(device, "d0")
    net.until(lambda: all(trains(net, device) for device in joiners), 2.0)
    net.rounds(3)
    assert agreed(net)


@pytest.mark.parametrize("apart_ms", [0, 5, 10, 15])
def test_a_joiner_that_loses_the_last_free_slot_waits_for_another_slot(apart_ms: int) -> None:
    for wait_ms in (50, 150, 250):
        net = started(4, adapter={"max_devices": 5}, membership={"quarantine_s": 3.0})
        net.signal("d3", "leave")
        net.run(wait_ms / 1000)
        net.add("d5", "d0")
        net.run(apart_ms / 1000)
        net.add("d6", "d1")
        net.until(lambda net=net: trains(net, "d5") and trains(net, "d6"), 30.0)  # type: ignore[misc]
        net.run(3.0)
        assert agreed(net)


def test_a_device_that_returns_while_it_waits_does_not_report_its_block_as_zero() -> None:
    net = started(3)
    net.run(1.0)
    net.until(lambda: net["d2"].protocol.phase is Phase.WAIT)
    change = net["d0"].protocol.members.verdict(BlockKey("d2", 0))
    assert change is not None
    net.send(net["d0"], "d2", Gossip([change.record.to_dict()], False, net["d0"].round))
    net.until(lambda: BlockKey("d2", 1) in net["d2"].slots, 2.0)
    held = net["d2"].protocol.exchange.held
    assert all(held[Part(BlockKey("d2", 1), group)] >= 0 for group in GROUPS)
    net.add("d3", "d0", move=still)
    net.until(lambda: trains(net, "d3"), 30.0)
    net.rounds(3)
    assert agreed(net)
    assert all(net["d3"].values[Part(BlockKey("d2", 1), group)].any() for group in GROUPS)


def test_a_joiner_trains_alone_when_no_helper_is_left() -> None:
    net = started(1)
    net.add("d1", "d0")
    net.until(lambda: net["d1"].protocol.phase is Phase.JOIN)
    net.crash("d0")
    net.until(lambda: trains(net, "d1"), 20.0)
    net.run(6.0)
    assert net["d1"].slots == {BlockKey("d1", 0): 1}


def test_joiners_that_know_only_joiners_wait_for_the_run() -> None:
    net = started(3)
    net.rounds(5)
    net.loses = lambda source, target, message: source in ("d0", "d1", "d2")
    net.add("d4", "d5", "d0")
    net.add("d5", "d4", "d0")
    net.run(2.0)
    assert not any(trains(net, device) for device in ("d4", "d5"))
    net.loses = lambda source, target, message: False
    net.until(lambda: trains(net, "d4") and trains(net, "d5"), 10.0)
    assert min(net["d4"].round, net["d5"].round) > 5


@pytest.mark.parametrize("mode", MODES)
def test_all_devices_resolve_a_slot_conflict_of_two_joiners_alike(mode: str) -> None:
    net = started(3, mode)
    net.add("d3", "d0")
    net.add("d11", "d1")  # both prefer slot 3, of 8
    net.run(3.0)
    assert agreed(net)
    assert sorted(net["d0"].slots.values()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("mode", MODES)
def test_two_devices_join_at_once(mode: str) -> None:
    net = started(3, mode)
    net.add("d3", "d0")
    net.add("d4", "d1")
    net.until(lambda: trains(net, "d3") and trains(net, "d4"), 15.0)


def test_a_device_joins_after_one_that_retired_before_it_trained() -> None:
    net = started()
    net.add("d4", "d0")
    net.until(lambda: net["d4"].protocol.phase is Phase.JOIN)
    net.signal("d4", "retire")
    net.run(1.0)
    net.add("d5", "d0")
    net.until(lambda: trains(net, "d5"), 15.0)


def test_a_joiner_at_the_end_trains_no_round_after_the_last() -> None:
    net = started(round={"count": 10})
    net.until(lambda: net["d0"].round == 8)
    net.add("d4", "d0")
    net.until(lambda: not list(net))
    assert all(train.round < 10 for train in net["d4"].done(do.Train))


def test_a_joiner_without_copies_does_not_dilute_the_copies_of_others() -> None:
    net = started()
    rest(net)
    before = copies(net["d0"])
    net.loses = lambda source, target, message: (
        target == "d4" and isinstance(message, Update) and message.cause == "transfer"
    )
    net.add("d4", "d0", move=still)
    net.until(lambda: trains(net, "d4"))
    net.rounds(5)
    assert same(copies(net["d0"], but="d4"), before)
