"""A SIGTERM to one device is a leave. A SIGTERM to all devices ends the run, and no device is forgotten."""

from __future__ import annotations

import pytest

from coordinator_free.identifiers import BlockKey
from peers.errors import LEAVE_UNCONFIRMED
from peers.protocol import actions as do
from peers.protocol.state_machine import Phase
from tests.support.simulated import GROUPS, Network, small_config
from tests.support.simulated_checks import agreed, has_gone, started
from transport.wire.messages import Stopping

D2 = BlockKey("d2", 0)
GRACE_S = 2.0
TOPOLOGIES = ["full", "ring"]


def with_grace(size: int = 4, topology: str = "full") -> Network:
    return started(size, topology={"kind": topology}, membership={"leave_grace_s": GRACE_S})


def stop(net: Network, *devices: str) -> None:
    for device in devices:
        net.signal(device, "leave")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_device_that_is_told_to_stop_leaves_after_the_grace(topology: str) -> None:
    net = with_grace(topology=topology)
    stop(net, "d2")
    net.run(GRACE_S - 0.1)
    assert net["d2"].live and not has_gone(net, D2)
    net.run(0.3)
    assert net["d2"].exit == do.Exit(0, "leave")
    assert has_gone(net, D2) and agreed(net)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_when_all_devices_are_told_to_stop_all_export_and_none_is_forgotten(topology: str) -> None:
    net = with_grace(5, topology)
    devices = list(net)
    stop(net, *(device.name for device in devices))
    net.run(GRACE_S / 2)
    for device in devices:
        assert device.exit is not None and device.exit.code == 0
        assert device.done(do.Export) == [do.Export()] and not device.done(do.DropBlock)
        assert not device.logged("leaving") and len(device.logged("ended")) == 1


def test_each_device_that_is_told_to_stop_extends_the_grace() -> None:
    net = with_grace()
    devices = list(net)
    for device in devices:
        stop(net, device.name)
        net.run(0.9 * GRACE_S)
    assert not any(device.done(do.DropBlock) for device in devices)
    assert all(device.exit is not None for device in devices)


def test_if_one_device_is_not_told_to_stop_the_others_leave() -> None:
    net = with_grace(6)
    names = [device.name for device in net]
    stop(net, *names[1:])
    net.run(1.5 * GRACE_S)
    assert [device.name for device in net] == ["d0"]
    assert all(BlockKey(name, 0) not in net["d0"].slots for name in names[1:])


def test_training_continues_during_the_grace() -> None:
    net = with_grace()
    stop(net, "d2")
    net.run(GRACE_S / 2)
    assert net["d2"].protocol.phase in (Phase.TRAIN, Phase.WAIT)
    assert net["d2"].round >= 5


def test_a_second_leave_signal_takes_effect_at_once() -> None:
    net = with_grace()
    stop(net, "d2", "d2")
    net.run(0.1)
    assert net["d2"].exit == do.Exit(0, "leave")


def test_a_retire_signal_during_the_leave_grace_is_a_leave() -> None:
    net = with_grace()
    stop(net, "d2")
    net.run(GRACE_S / 4)
    net.signal("d2", "retire")
    net.run(0.1)
    assert net["d2"].exit == do.Exit(0, "leave")
    assert has_gone(net, D2) and agreed(net)


def test_a_retirement_has_no_grace() -> None:
    net = with_grace()
    net.signal("d2", "retire")
    net.run(0.1)
    assert net["d2"].exit == do.Exit(0, "retire")


def test_a_device_that_is_alone_ends_the_run_at_once() -> None:
    net = with_grace(1)
    device = net["d0"]
    stop(net, "d0")
    assert device.exit is not None and device.done(do.Export)


def test_a_crashed_device_delays_the_end_only_until_its_crash_is_known() -> None:
    net = with_grace()
    net.crash("d3")
    net.until(lambda: all("d3" not in device.protocol.members.alive() for device in net))
    devices = list(net)
    stop(net, *(device.name for device in devices))
    net.run(GRACE_S / 2)
    assert not any(device.logged("leaving") for device in devices)


def test_a_stop_before_the_first_round_ends_without_an_export() -> None:
    net = Network(started(1, membership={"leave_grace_s": GRACE_S}).config)
    device = net.add("d0", cohort=2)
    stop(net, "d0")
    assert device.exit == do.Exit(0, "ended") and not device.done(do.Export)


def test_a_lost_stopping_message_is_repeated() -> None:
    net = with_grace()
    devices, lost = list(net), []

    def loses(source: str, target: str, message: object) -> bool:
        first = isinstance(message, Stopping) and (source, target) not in lost
        lost.append((source, target)) if first else None
        return first

    net.loses = loses
    stop(net, *(device.name for device in devices))
    net.run(GRACE_S)
    assert not any(device.logged("leaving") for device in devices)


@pytest.mark.parametrize(("device", "reason"), [("d3", "forged"), ("d9", "unknown")])
def test_a_stopping_message_without_a_valid_signature_is_refused(device: str, reason: str) -> None:
    net = with_grace()
    stop(net, "d2")
    for name in ("d0", "d1", "d3"):
        message = Stopping(name, 0, b"x" * 32)
        net.send(net["d1"], "d2", message)
    net.send(net["d1"], "d2", Stopping(device, 0, b"x" * 32))
    net.run(GRACE_S + 0.2)
    assert net["d2"].dropped[reason] >= 1
    assert net["d2"].exit == do.Exit(0, "leave") and has_gone(net, D2)
    assert all(device.block(BlockKey("d0", 0)).keys() == set(GROUPS) for device in net)


# -- the last record -------------------------------------------------------------------------------------


def test_a_lost_last_record_is_repeated_until_a_member_confirms_it() -> None:
    net = started(2)
    net.loses = lambda source, target, message: source == "d1"
    net.signal("d1", "leave")
    net.run(0.6)
    assert net["d1"].live
    net.loses = lambda source, target, message: False
    net.run(0.4)
    assert net["d1"].exit == do.Exit(0, "leave")
    assert net["d0"].protocol.members.tombstoned(BlockKey("d1", 0)) and has_gone(net, BlockKey("d1", 0))


def test_a_lost_confirmation_is_requested_again() -> None:
    net = started(2)
    net.loses = lambda source, target, message: target == "d1"
    net.signal("d1", "leave")
    net.run(0.4)
    net.loses = lambda source, target, message: False
    net.run(0.4)
    assert net["d1"].exit == do.Exit(0, "leave")


def test_a_device_without_any_confirmation_exits_after_a_bounded_time() -> None:
    net = started(2)
    net.loses = lambda source, target, message: True
    net.signal("d1", "retire")
    net.run(2.5)
    assert net["d1"].exit == do.Exit(0, "retire")


def test_a_second_signal_ends_the_wait_for_a_confirmation() -> None:
    net = started(2)
    net.loses = lambda source, target, message: True
    stop(net, "d1", "d1")
    exit = net["d1"].exit
    assert exit is not None and exit.code == LEAVE_UNCONFIRMED


def test_no_training_follows_the_last_record() -> None:
    net = started(2)
    net.loses = lambda source, target, message: source == "d1"
    net.signal("d1", "leave")
    trained = len(net["d1"].done(do.Train))
    net.run(1.5)
    assert len(net["d1"].done(do.Train)) == trained


def test_a_leave_right_after_a_retire_is_a_leave() -> None:
    net = started(3)
    key = BlockKey("d1", 0)
    net.signal("d1", "retire")
    net.signal("d1", "leave")
    net.run(2.0)
    assert not net["d1"].live
    assert all(device.protocol.members.tombstoned(key) and key not in device.slots for device in net)


def test_a_leave_also_deletes_the_block_of_an_earlier_retirement() -> None:
    net = started(3)
    net.signal("d1", "retire")
    net.run(1.0)
    net.add("d1", "d0")
    net.until(lambda: net["d1"].round >= 0)
    net.rounds(2)
    assert BlockKey("d1", 0) in net["d0"].slots
    net.signal("d1", "leave")
    net.run(1.0)
    assert agreed(net) and {key.device for key in net["d0"].slots} == {"d0", "d2"}
    assert net["d0"].protocol.members.tombstoned(BlockKey("d1", 0))


# -- what is saved ---------------------------------------------------------------------------------------


def last_closed(told: list[do.Action]) -> int:
    return max((action.round for action in told if isinstance(action, do.RoundDone)), default=-1)


@pytest.mark.parametrize("after_ms", range(0, 210, 30))  # in the local steps of a round, or after them
def test_an_early_end_saves_the_last_closed_round(after_ms: int) -> None:
    net = Network(small_config(topology={"kind": "full"}))
    net.cohort(3, snapshot_every=1)
    net.rounds(3)
    net.run(after_ms / 1000)
    for device in list(net):
        net.signal(device.name, "end")
    net.run(1.0)
    for device in net:
        assert device.exit is not None and device.exit.code == 0
        (end,) = [a for a in device.done(do.Snapshot) if a.tag == "end"]
        assert end.round == last_closed(device.told)
        assert device.done(do.Export) == [do.Export()] and not device.done(do.DropBlock)
        assert not device.logged("leaving") and len(device.logged("ended")) == 1


def test_only_the_close_of_a_round_makes_its_local_steps_a_result() -> None:
    net = started(3, topology={"kind": "full"})
    net.rounds(3)
    for device in net:
        closed = [action for action in device.done(do.Apply) if action.closes]
        assert len(closed) == len(device.done(do.RoundDone))


def test_a_device_that_retires_saves_no_checkpoint() -> None:
    net = started(3, topology={"kind": "full"})
    net.rounds(2)
    net.signal("d1", "retire")
    net.run(1.0)
    assert net["d1"].done(do.Export) == [do.Export(run_over=False)]


# -- who was told to stop --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 5])
def test_one_silent_member_does_not_turn_an_end_into_leaves(size: int) -> None:
    net = with_grace(size)
    net["d0"].protocol._handlers[Stopping] = lambda now, source, message: None
    net["d0"].protocol._departure.signal = lambda now, kind: None  # type: ignore[method-assign]
    stop(net, *(device.name for device in net))
    net.run(1.5 * GRACE_S)
    for number in range(1, size):
        device = net[f"d{number}"]
        assert len(device.logged("ended")) == len(device.done(do.Export)) == 1
        assert not device.logged("leaving") and device.logged("silent")[0]["peer"] == "d0"


def test_one_member_that_says_it_stops_does_not_turn_a_leave_into_an_end() -> None:
    net = with_grace(3)
    net["d0"].protocol._departure._tell_stopping(net.now)  # it was not told so
    net.run(0.1)
    stop(net, "d2")
    net.run(1.5 * GRACE_S)
    assert net["d2"].exit == do.Exit(0, "leave") and has_gone(net, D2)
    assert [line["peer"] for line in net["d2"].logged("stays")] == ["d1"]


def test_a_lost_answer_of_a_member_that_stays_is_asked_for_again() -> None:
    net = with_grace(4)
    lost: list[tuple[str, str]] = []

    def loses(source: str, target: str, message: object) -> bool:
        first = isinstance(message, Stopping) and message.stays and (source, target) not in lost
        lost.append((source, target)) if first else None
        return first

    net.loses = loses
    stop(net, "d1", "d2", "d3")
    net.run(1.5 * GRACE_S)
    assert [device.name for device in net] == ["d0"] and lost


def test_a_member_that_was_told_to_stop_later_takes_its_word_back() -> None:
    net = with_grace(3)
    stop(net, "d1", "d2")
    net.run(GRACE_S / 4)  # d0 has answered that it stays
    stop(net, "d0")
    net.run(GRACE_S / 4)
    assert not any(device.logged("leaving") for device in net.everyone)
