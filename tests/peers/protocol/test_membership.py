"""Leave, retire, crash and stall in a simulated network: devices agree, and no deleted block returns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coordinator_free.identifiers import BlockKey, Part
from coordinator_free.membership.signed_records import Status
from peers.protocol import actions as do
from tests.support.simulated import GROUPS, MILLI, SECOND, Network, refusal, still
from tests.support.simulated_checks import agreed, has_gone, rest, started, trains
from transport.wire.messages import Gossip, Hello, Ping

D2 = BlockKey("d2", 0)
MODES = ["average", "newest"]


# -- tables that differ ----------------------------------------------------------------------------------
PERIOD = SECOND // 2


def tables(told: list[do.Action]) -> int:
    return sum(isinstance(action, do.Tell) and isinstance(action.message, Gossip) for action in told)


def test_a_table_goes_to_a_peer_whose_table_differs_once_both_have_stood_still() -> None:
    net = started(3)
    net.run(5.0)
    d0, start = net["d0"].protocol, net.now
    told = [tables(d0.on_message(start + n * PERIOD // 2, "d1", Ping(n, b"x" * 16))) for n in range(5)]
    assert told == [1, 0, 1, 0, 1]  # the peer had none for long; later, at most once a period


def test_while_news_spreads_a_peer_gets_a_table_only_now_and_then() -> None:
    net = started(3)
    net.run(5.0)
    d0, start = net["d0"].protocol, net.now
    told = [tables(d0.on_message(start + n * PERIOD, "d1", Ping(n, bytes([n]) * 16))) for n in range(17)]
    assert [n for n, count in enumerate(told) if count] == [0, 8, 16]


def answers(net: Network, known: bytes, after_ns: int = 0) -> list[list[str]]:
    """The devices whose records d0 sends to d1 for a hello that names `known`: one list a message."""
    net.now += after_ns
    d0 = net["d0"].protocol
    hello = Hello("sim://d1", {"bases": "q"}, True, d0._connections._capabilities, 0, known)
    told = d0.on_message(net.now, "d1", hello)
    tables = [a.message for a in told if isinstance(a, do.Tell) and isinstance(a.message, Gossip)]
    return [[record["device"] for record in table.records] for table in tables]


def test_a_greeted_device_gets_the_records_that_its_hello_does_not_name_and_its_own() -> None:
    net = started(4)
    net.run(5.0)
    names = net["d0"].protocol.members.names(4)
    assert answers(net, names) == [["d1"]]
    assert answers(net, names[8:16], after_ns=PERIOD) == [["d0", "d1", "d2", "d3"]]
    assert answers(net, names[:8] + names[24:], after_ns=PERIOD) == [["d1", "d2"]]


def test_a_tombstone_goes_with_every_answer() -> None:
    net = started(4)
    net.signal("d3", "leave")
    net.run(5.0)
    assert answers(net, net["d0"].protocol.members.names(4)) == [["d1", "d3"]]


def test_a_process_that_starts_within_the_pause_gets_the_whole_table_once() -> None:
    net = started(4)
    net.run(5.0)
    names = net["d0"].protocol.members.names(4)
    assert answers(net, names) == [["d1"]]  # of the process that has ended
    assert answers(net, b"") == [["d0", "d1", "d2", "d3"]]
    assert answers(net, names) == answers(net, b"") == []


def test_hellos_that_name_everything_keep_no_table_from_a_peer() -> None:
    net = started(3)
    net.run(5.0)
    d0, names, told = net["d0"].protocol, net["d0"].protocol.members.names(3), 0
    for n in range(64):
        answers(net, names, after_ns=PERIOD // 4)
        told += tables(d0.on_message(net.now, "d1", Ping(n, b"x" * 16)))
    assert told >= 8


def test_a_link_that_opens_again_carries_the_records_alone_that_the_other_lacks() -> None:
    net = started(4)
    net.run(5.0)
    d0, d1 = net["d0"], net["d1"]
    before = len(d0.told), len(d1.told)
    d1.protocol._connections.disconnect("d0")
    d1.protocol._connections.connect("d0", "sim://d0", net.now)
    net.run(0.2)
    hello = next(a.message for a in d1.told[before[1] :] if isinstance(a, do.Tell) and a.peer == "d0")
    table = next(
        a.message
        for a in d0.told[before[0] :]
        if isinstance(a, do.Tell) and a.peer == "d1" and isinstance(a.message, Gossip)
    )
    assert isinstance(hello, Hello) and hello.known == d1.protocol.members.names(4)
    assert [record["device"] for record in table.records] == ["d1"]


# -- leave -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["full", "ring"])
@pytest.mark.parametrize("mode", MODES)
def test_after_a_leave_every_survivor_drops_the_block_at_once_and_for_good(mode: str, topology: str) -> None:
    net = started(5, mode, topology={"kind": topology})
    net.signal("d2", "leave")
    net.run(0.1)  # the record takes 5 ms a hop
    assert has_gone(net, D2)
    for device in net:
        assert device.done(do.DropBlock) == [do.DropBlock(D2, "leave")]
        assert device.protocol.members.tombstoned(D2)
        assert refusal(device, "d1" if device.name != "d1" else "d0", D2) == "tombstoned"
    net.rounds(10)
    assert has_gone(net, D2) and agreed(net)
    assert net["d2"].exit == do.Exit(0, "leave") and not net["d2"].done(do.Export)


@pytest.mark.parametrize(("word", "refit"), [("leave", 0.4), ("retire", 0.0)])
def test_a_refit_follows_a_leave_and_no_retirement(word: str, refit: float) -> None:
    net = started(5, "average", correction={"refit": 0.4})
    net.signal("d2", word)
    net.rounds(5)
    published = [made for device in net for made in device.done(do.Publish)]
    told = {status for made in published for *_, status in made.manifest.items}
    drops = [drop for device in net for drop in device.done(do.DropBlock)]
    assert {drop.refit for drop in drops} <= {refit}
    assert (len(drops) == 4) == (word == "leave")
    assert ("replaces" in told) == (word == "leave")


def test_data_of_a_leaver_still_in_flight_is_refused() -> None:
    net = started()
    net["d1"].links, links = {}, net["d1"].links  # d1 does not receive the leave of d2 ...
    net.loses = lambda source, target, message: target == "d1" and isinstance(message, Gossip)
    net.signal("d2", "leave")
    net.run(0.05)
    assert D2 in net["d1"].slots and D2 not in net["d0"].slots
    net["d1"].links = links  # ... and relays the block once more
    net.until(lambda: net["d0"].dropped["tombstoned"] > 0)
    assert D2 not in net["d0"].slots
    net.loses = lambda source, target, message: False
    net.until(lambda: has_gone(net, D2))  # the digests in the manifests differ: the table is sent


def test_no_round_waits_for_a_device_that_left() -> None:
    net = started()
    net.signal("d2", "leave")
    net.rounds(5)
    for device in net:
        late = device.done(do.RoundDone)
        assert max(record.end_ns - record.start_ns for record in late) <= 150 * MILLI
        assert late[-1].members == ("d0", "d1", "d3")


def test_gossip_of_a_tombstone_is_idempotent() -> None:
    net = started()
    net.signal("d2", "leave")
    net.rounds(3)
    device = net["d0"]
    tombstone = device.protocol.members.get(D2)
    assert tombstone is not None
    before = device.table()
    message = Gossip([tombstone.to_dict()], False, 0)
    assert device.protocol.on_message(net.now, "d1", message) == []
    assert device.table() == before


@pytest.mark.parametrize("status", [Status.ALIVE, Status.CRASHED])
def test_an_older_record_does_not_bring_a_leaver_back(status: Status) -> None:
    net = started()
    old = net["d0"].protocol.members.get(D2)
    assert old is not None
    net.signal("d2", "leave")
    net.rounds(3)
    before = net["d0"].table()
    said = Gossip([replace(old, status=status).to_dict()], False, 0)
    assert net["d0"].protocol.on_message(net.now, "d1", said) == []
    assert net["d0"].table() == before
    assert refusal(net["d0"], "d1", D2) == "tombstoned"


@pytest.mark.parametrize("mode", MODES)
def test_a_leaver_that_returns_has_a_new_incarnation_and_a_zero_block(mode: str) -> None:
    net = started(mode=mode)
    net.signal("d2", "leave")
    net.run(2.0)
    net.add("d2", "d0", move=still)
    net.until(lambda: trains(net, "d2"))
    net.rounds(3)
    assert agreed(net) and has_gone(net, D2)
    for device in net:
        assert device.protocol.members.tombstoned(D2)
        assert not any(device.values[Part(BlockKey("d2", 1), group)].any() for group in GROUPS)


def test_a_joiner_knows_the_tombstone_before_any_data() -> None:
    net = started()
    net.signal("d2", "leave")
    net.run(1.0)
    net.add("d4", "d1")
    net.until(lambda: trains(net, "d4"))
    assert net["d4"].protocol.members.tombstoned(D2)
    assert D2 not in net["d4"].slots and not net["d4"].done(do.DropBlock)


def test_a_leave_starts_correction_rounds() -> None:
    net = started()  # correction.rounds = 3
    net.signal("d2", "leave")
    net.until(lambda: has_gone(net, D2))
    at = net["d0"].round
    net.rounds(8)
    phases = {record.round: record.phase for record in net["d0"].done(do.RoundDone)}
    assert [phases[at + i] for i in range(1, 6)] == ["correction"] * 3 + ["train"] * 2
    quiet = [train.round for train in net["d0"].done(do.Train) if not train.rehearse]
    assert quiet == [at + 1, at + 2, at + 3]


# -- retire ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_retired_block_stays_as_it_was(mode: str) -> None:
    net = started(mode=mode)
    rest(net)
    before = [net["d0"].values[Part(D2, group)].copy() for group in GROUPS]
    net.signal("d2", "retire")
    net.rounds(5)
    assert agreed(net) and not any(device.done(do.DropBlock) for device in net)
    for device in net:
        assert np.allclose([device.values[Part(D2, group)] for group in GROUPS], before, atol=1e-9)
        assert np.any(before)
    assert len(net["d2"].done(do.Export)) == 1 and net["d2"].exit == do.Exit(0, "retire")


def test_no_round_waits_for_a_device_that_retired() -> None:
    net = started()
    net.signal("d2", "retire")
    net.rounds(5)
    for record in net["d0"].done(do.RoundDone):
        assert record.end_ns - record.start_ns <= 150 * MILLI


@pytest.mark.parametrize("mode", MODES)
def test_a_joiner_gets_a_retired_block_and_leaves_its_slot_alone(mode: str) -> None:
    net = started(mode=mode)
    rest(net)
    net.signal("d2", "retire")
    net.run(1.0)
    net.add("d10", "d0", move=still)  # prefers slot 2, of 8
    net.until(lambda: trains(net, "d10"))
    assert np.allclose(net["d10"].values[Part(D2, "early")], net["d0"].values[Part(D2, "early")], atol=1e-9)
    assert net["d10"].slots[D2] == 2 and net["d10"].slots[BlockKey("d10", 0)] != 2


@pytest.mark.parametrize("mode", MODES)
def test_a_device_that_returns_holds_its_retired_block(mode: str) -> None:
    net = started(mode=mode)
    rest(net)
    net.signal("d2", "retire")
    net.run(2.0)
    net.add("d2", "d0", move=still)
    net.until(lambda: trains(net, "d2"))
    assert np.allclose(net["d2"].values[Part(D2, "early")], net["d0"].values[Part(D2, "early")], atol=1e-9)
    net.rounds(3)
    assert agreed(net) and BlockKey("d2", 1) in net["d0"].slots


# -- crash -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["full", "ring"])
def test_a_crash_is_detected_and_the_block_is_dropped_after_a_grace(topology: str) -> None:
    net = started(5, topology={"kind": topology}, membership={"grace_s": 3.0})
    net.crash("d2")
    net.run(2.0)
    assert all("d2" in device.protocol.members.alive() for device in net)  # a pause is no crash: at least 2 s
    net.until(lambda: all("d2" not in device.protocol.members.alive() for device in net), 5.0)
    assert all(D2 in device.slots for device in net)
    net.run(3.1)
    assert has_gone(net, D2) and agreed(net)
    assert not any(device.protocol.members.tombstoned(D2) for device in net)


def test_on_crash_keep_keeps_the_block_and_its_slot() -> None:
    net = started(on_crash="keep")
    net.crash("d2")
    net.run(8.0)
    net.add("d10", "d0")  # prefers slot 2, of 8
    net.until(lambda: trains(net, "d10"))
    net.rounds(3)
    assert agreed(net) and net["d0"].slots[D2] == 2
    assert net["d0"].done(do.RoundDone)[-1].members == ("d0", "d1", "d10", "d3")


def test_a_crash_delays_no_round_beyond_its_deadline() -> None:
    net = started()
    net.crash("d2")
    net.run(20.0)
    for device in net:
        lengths = [record.end_ns - record.start_ns for record in device.done(do.RoundDone)]
        assert max(lengths) <= 2 * SECOND  # round.deadline_s
        assert sum(length > 150 * MILLI for length in lengths) <= 4  # after that no round waits for d2


@pytest.mark.parametrize("mode", MODES)
def test_a_crashed_device_that_starts_again_has_a_new_incarnation(mode: str) -> None:
    net = started(mode=mode)
    net.crash("d2")
    net.run(10.0)
    net.add("d2", "d0")
    net.until(lambda: trains(net, "d2"))
    net.rounds(3)
    assert agreed(net) and has_gone(net, D2)
    assert all(BlockKey("d2", 1) in device.slots for device in net)


@pytest.mark.parametrize("mode", MODES)
def test_a_device_that_restarts_before_its_crash_is_noticed_has_a_new_incarnation(mode: str) -> None:
    net = started(mode=mode)
    net.crash("d2")
    net.run(1.0)
    net.add("d2", "d0")
    net.until(lambda: trains(net, "d2"))
    net.rounds(3)
    assert agreed(net) and has_gone(net, D2)


@pytest.mark.parametrize("mode", MODES)
def test_a_device_that_restarts_soon_gets_blocks_that_no_longer_change(mode: str) -> None:
    net = started(mode=mode)
    net.signal("d3", "retire")
    net.run(2.0)
    net.crash("d2")
    net.run(1.0)
    net.add("d2", "d0")
    net.until(lambda: trains(net, "d2"), 15.0)


# -- stall -----------------------------------------------------------------------------------------------


def test_a_short_stall_changes_nothing() -> None:
    net = started()
    before = [device.table() for device in net]
    net.stall("d2", 2.0)
    net.run(10.0)
    assert [device.table() for device in net] == before


def test_a_stalled_device_does_not_declare_the_others_crashed() -> None:
    net = started()
    net.stall("d2", 20.0)
    net.run(20.5)
    assert not net["d2"].logged("suspected")


def test_a_device_that_stalled_too_long_returns_under_a_new_incarnation() -> None:
    net = started()
    net.stall("d2", 20.0)
    net.run(19.0)
    assert all(D2 not in device.slots for device in net if device.name != "d2")
    net.run(21.0)
    assert agreed(net) and all(net["d0"].slots.keys() >= {BlockKey("d2", 1)} for device in net)


def test_after_a_partition_heals_all_devices_return() -> None:
    net = started()
    net.loses = lambda source, target, message: (source in ("d0", "d1")) != (target in ("d0", "d1"))
    net.run(20.0)
    assert len(net["d0"].slots) == len(net["d2"].slots) == 2
    net.loses = lambda source, target, message: False
    net.run(30.0)
    assert agreed(net) and len(net["d0"].slots) == 4
