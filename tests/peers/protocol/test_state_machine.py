"""The decisions of one device: start and end of rounds, and refused messages; in simulated time."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Record, Status
from peers.protocol import actions as do
from peers.protocol.state_machine import Phase
from tests.support.signatures import public, sign_as
from tests.support.simulated import MILLI, SECOND, WIDTH, Network, SimDevice, refusal, small_config
from transport.wire.messages import (
    Ack,
    Bye,
    Credit,
    Gossip,
    Hello,
    Manifest,
    Message,
    Ping,
    Refuse,
    Request,
    Transit,
    Update,
    Updates,
    Window,
)

ROUNDS = 4


def started(size: int = 3, **sections: Any) -> Network:
    net = Network(small_config(**sections))
    net.cohort(size)
    net.rounds(2)
    return net


def finite(**sections: Any) -> Network:
    """A cohort whose run ends soon."""
    net = Network(small_config(round={"count": ROUNDS}, **sections))
    net.cohort(3)
    return net


def record(device: str, slot: int = 5, **more: Any) -> Record:
    """A record with the signature of its owner."""
    made = Record(device, 0, f"sim://{device}", slot, 50, 50, public=public(device), **more)
    return replace(made, signature=sign_as(device, made.signed_data()))


def gossip(*records: Record, **changes: Any) -> Gossip:
    return Gossip([{**r.to_dict(), **changes} for r in records], False, 0)


def say(net: Network, device: str, source: str, message: Message) -> list[do.Action]:
    """The actions of a device on a message."""
    return net[device].protocol.on_message(net.now, source, message)


def state_of(device: SimDevice) -> tuple[object, ...]:
    """All of a device's decisions that a message could change."""
    p = device.protocol
    peers = {name: (x.greeted, x.done, sorted(x.manifests)) for name, x in p.peers.items()}
    return list(p.members), dict(p.blocks), p.own, p.phase, p.round, dict(p.exchange.held), peers


# -- the start -------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    st.integers(1, 6),
    st.sampled_from(["full", "ring", "ring-chords", "random-geometric"]),
    st.lists(st.integers(1, 400), min_size=1, max_size=9),
)
def test_a_cohort_starts_at_round_0_with_the_same_blocks_and_distinct_slots(
    size: int, kind: str, latencies: list[int]
) -> None:
    drawn = iter(latencies * 10_000)
    net = Network(small_config(topology={"kind": kind}), lambda: next(drawn) * MILLI)
    devices = net.cohort(size)
    net.until(lambda: all(device.round >= 0 for device in devices))
    net.rounds(3)
    assert [device.done(do.Train)[0].round for device in devices] == [0] * size
    assert all(device.table() == devices[0].table() for device in devices)
    assert devices[0].slots == {BlockKey(f"d{i}", 0): i for i in range(size)}


def test_a_cohort_waits_for_its_last_member() -> None:
    net = Network(small_config())
    net.add("d0", "d1", "d2", cohort=3)
    net.add("d1", "d0", "d2", cohort=3)
    net.run(10.0)
    assert [device.protocol.phase for device in net] == [Phase.SETTLE] * 2
    net.add("d2", "d0", "d1", cohort=3)
    net.rounds(1)
    assert {len(device.slots) for device in net} == {3}


def test_the_devices_of_a_gathering_cohort_keep_to_the_links_of_their_start() -> None:
    """Each calls those 1, 2, 4, ... places before it, as the launcher says: N log N greetings."""
    size, net = 20, Network(small_config(adapter={"max_devices": 32}))
    names = [f"d{number}" for number in range(size)]
    before = {name: [names[n - 2**k] for k in range(5) if n >= 2**k] for n, name in enumerate(names)}
    for name in names[:-1]:
        net.add(name, *before[name], cohort=size)
        net.run(0.1)
    net.until(lambda: all(len(device.protocol.members.alive()) == size - 1 for device in net), 10.0)
    others = 0
    for device in net:
        callers = {name for name in names[:-1] if device.name in before[name]}
        others += len({*device.protocol.peers} - {*before[device.name], *callers})
    assert others <= size // 4  # tables are exchanged with random members too, now and then
    net.add(names[-1], *before[names[-1]], cohort=size)
    net.until(lambda: all(device.round >= 1 for device in net), 10.0)


def test_a_cohort_begins_without_a_member_that_does_not_start() -> None:
    net = Network(small_config())
    net.add("d0", "d1", "d2", cohort=3)
    net.add("d1", "d0", "d2", cohort=3)
    net.run(21.0)  # membership.settle_s = 20
    assert all(device.round >= 0 and device.logged("unsettled") for device in net)


def test_a_device_without_seeds_begins_alone() -> None:
    net = Network(small_config())
    net.add("d0")
    net.rounds(3)
    assert net["d0"].slots == {BlockKey("d0", 0): 0}


def test_cohort_members_that_prefer_the_same_slot_get_different_slots() -> None:
    net = Network(small_config())
    names = ["d0", "d8", "d16"]  # 8 slots: all prefer slot 0
    for name in names:
        net.add(name, *(other for other in names if other != name), cohort=3)
    net.until(lambda: all(device.round >= 1 for device in net))
    tables = [device.table() for device in net]
    assert tables[0] == tables[1] == tables[2]
    assert len(set(net["d0"].slots.values())) == 3


# -- the end ---------------------------------------------------------------------------------------------


def test_everyone_exports_says_goodbye_and_exits_at_once() -> None:
    net = finite()
    net.until(lambda: not list(net))
    for device in net.everyone:
        assert device.exit == do.Exit(0, "finished")
        assert [r.round for r in device.done(do.RoundDone)] == list(range(ROUNDS))
        assert len(device.done(do.Export)) == 1
        assert len(device.slots) == 3
    assert net.now < 1 * SECOND  # no device waited for its grace period


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_sent_to_a_device_that_has_gone(seed: int) -> None:
    """With any latencies and any late device, both ends count the same bytes."""
    draw = random.Random(seed)
    names = ["d0", "d1", "d2", "d3", "d4"]
    net = Network(small_config(round={"count": ROUNDS}), lambda: draw.randint(1, 120) * MILLI)
    for name in names:
        net.add(name, *(other for other in names if other != name), cohort=5)
        net[name].train_ns = draw.randint(1, 400) * MILLI
    net.until(lambda: not list(net))
    assert [device.exit for device in net.everyone] == [do.Exit(0, "finished")] * 5
    assert net.unread == []


def test_a_finished_device_does_not_wait_forever_for_a_slow_device() -> None:
    net = finite(membership={"crash_after_s": 100.0})
    net["d2"].train_ns = 60 * SECOND
    net.run(30.0)
    assert [device.name for device in net] == ["d2"]
    assert net["d0"].exit == do.Exit(0, "finished; not all others said goodbye")


@pytest.mark.parametrize("kind", ["leave", "retire", None])
def test_no_device_waits_for_one_that_goes_before_the_others_finish(kind: str | None) -> None:
    """It goes by a signal or after its grace."""
    net = finite(membership={"crash_after_s": 100.0})
    net["d2"].train_ns = 15 * SECOND
    early = [net["d0"], net["d1"]]
    net.until(lambda: all(device.protocol.phase is Phase.FINISH for device in early))
    if kind is not None:
        for device in early:
            net.signal(device.name, kind)
    net.until(lambda: [device.name for device in net] == ["d2"])
    net.until(lambda: not list(net) or net["d2"].protocol.phase is Phase.FINISH)
    began = net.now
    net.until(lambda: not list(net))
    assert net["d2"].exit == do.Exit(0, "finished")
    assert net.now - began < 1 * SECOND


def test_a_finished_device_does_not_declare_a_slower_one_crashed() -> None:
    net = finite()
    net["d2"].train_ns = 7 * SECOND
    net.until(lambda: not list(net))
    assert not [device.name for device in net.everyone if device.logged("suspected")]


def test_no_round_waits_for_a_device_that_said_goodbye() -> None:
    net = started()
    net.loses = lambda source, target, message: source == "d1" and not isinstance(message, Bye)
    for peer in ("d0", "d2"):
        net.send(net["d1"], peer, Bye("finished"), data=True)
    net.rounds(1)
    net.run(2.0)
    for name in ("d0", "d2"):
        records = net[name].done(do.RoundDone)
        assert len(records) > 15
        assert max(record.end_ns - record.start_ns for record in records) < 200 * MILLI


@pytest.mark.parametrize("kind", ["leave", "retire"])
def test_after_the_last_round_a_signal_is_only_an_exit(kind: str) -> None:
    net = finite()
    net["d2"].train_ns = 250 * MILLI
    net.until(lambda: net["d0"].protocol.phase is Phase.FINISH)
    net.signal("d0", kind)
    net.until(lambda: not list(net))
    assert net["d0"].exit == do.Exit(0, "finished") and not net["d0"].logged("leaving")
    assert len(net["d0"].done(do.Export)) == 1
    for device in net.everyone:
        assert BlockKey("d0", 0) in device.slots and not device.protocol.members.tombstoned(BlockKey("d0", 0))


def test_before_a_claim_a_signal_is_only_an_exit() -> None:
    net = Network(small_config())
    net.add("d0", "d1", cohort=2)
    net.signal("d0", "leave")
    assert net["d0"].exit == do.Exit(0, "gone")


# -- refused messages ------------------------------------------------------------------------------------


def test_different_bases_are_refused_on_both_sides_with_the_reason() -> None:
    net = Network(small_config())
    net.add("d0", "d1", cohort=2, bases="q")
    net.add("d1", "d0", cohort=2, bases="h")
    net.run(1.0)
    for device, other in (("d0", "d1"), ("d1", "d0")):
        refused = net[device].logged("refused")
        assert {"peer": other} in [{k: v for k, v in r.items() if k == "peer"} for r in refused]
        assert {"by": other} in [{k: v for k, v in r.items() if k == "by"} for r in refused]
        assert all("bases" in str(r["reason"]) for r in refused)
        assert [action.code for action in net[device].done(do.Exit)][:1] == [1]
        assert other not in {key.device for key in net[device].slots}


def test_a_joiner_with_different_bases_exits_and_changes_nothing() -> None:
    net = started()
    net.add("d3", "d0", bases="h")
    before = [device.table() for device in net if device.name != "d3"]
    net.run(5.0)
    assert [device.table() for device in net] == before
    assert [action.code for action in net["d3"].done(do.Exit)] == [1]
    assert "bases" in str(net["d0"].logged("refused")[0]["reason"])
    assert net["d0"].dropped["refused"] >= 1


@pytest.mark.parametrize("lacks", ["mixing:average", "clock:real", "codec:fp16"])
def test_a_device_with_another_mixing_mode_clock_or_codec_is_refused(lacks: str) -> None:
    net = started()
    able = [word for word in ("mixing:average", "clock:real", "codec:fp16") if word != lacks]
    actions = say(net, "d0", "d9", Hello("sim://d9", {"bases": "q"}, True, able, 0))
    told = [a.message for a in actions if isinstance(a, do.Tell)]
    assert Refuse(f"it lacks {lacks}") in told
    assert [a.fields["reason"] for a in actions if isinstance(a, do.Log)] == [f"it lacks {lacks}"]


def test_a_second_device_under_the_own_id_is_refused() -> None:
    net = started()
    actions = say(net, "d0", "d0", Hello("sim://elsewhere", {"bases": "q"}, True, [], 0))
    assert do.Drop("refused") in actions
    assert [a for a in actions if isinstance(a, do.Tell) and isinstance(a.message, Refuse)]


STRANGERS = {
    "gossip": gossip(record("mallory")),
    "leave of another": gossip(replace(record("d1", 1), status=Status.LEFT)),
    "manifest": Manifest(3, "train", b"viewview", []),
    "request": Request([("d1", 0, "early", -1)], 0),
    "ping": Ping(3, b"viewview"),
    "bye": Bye("finished"),
}


@pytest.mark.parametrize("message", STRANGERS.values(), ids=STRANGERS)
def test_a_message_of_a_stranger_changes_nothing(message: Message) -> None:
    net = started()
    before = state_of(net["d0"])
    assert say(net, "d0", "mallory", message) == [do.Drop("stranger")]
    assert state_of(net["d0"]) == before


def test_data_of_a_stranger_is_refused() -> None:
    net = started()
    assert refusal(net["d0"], "mallory", BlockKey("d1", 0)) == "stranger"
    assert refusal(net["d0"], "d1", BlockKey("d1", 0)) is None


def test_a_stranger_cannot_refuse_a_device_that_settles() -> None:
    net = Network(small_config())
    net.add("d0", "d1", cohort=2)
    assert not [a for a in say(net, "d0", "mallory", Refuse("go away")) if isinstance(a, do.Exit)]


def test_a_refusal_does_not_stop_a_device_that_trains() -> None:
    net = started()
    before = state_of(net["d0"])
    assert not [a for a in say(net, "d0", "mallory", Refuse("go away")) if isinstance(a, do.Exit)]
    assert state_of(net["d0"]) == before


MALFORMED = {
    "slot out of range": {"slot": 8},
    "a time that cannot be": {"lamport": (1 << 48) + 1},
    "unknown status": {"status": 9},
    "negative incarnation": {"incarnation": -1},
    "wrong type": {"address": 5},
    "another field": {"more": 1},
}


@pytest.mark.parametrize("changes", MALFORMED.values(), ids=MALFORMED)
def test_malformed_gossip_is_dropped_whole(changes: dict[str, object]) -> None:
    net = started()
    before = state_of(net["d0"])
    good = gossip(record("d6", 6)).records
    message = Gossip(good + gossip(record("d5"), **changes).records, True, 0)
    assert say(net, "d0", "d1", message) == [do.Drop("malformed")]
    assert state_of(net["d0"]) == before


def test_forged_gossip_changes_nothing() -> None:
    net = started()
    before = state_of(net["d0"])
    left = replace(record("d2", 2), status=Status.LEFT)  # the signature is not of this status
    assert say(net, "d0", "d1", gossip(left)) == [do.Drop("forged")]
    assert state_of(net["d0"]) == before


def test_the_round_of_malformed_gossip_is_ignored() -> None:
    net = started()
    net.add("d3", "d0")
    net.until(lambda: net["d3"].protocol.phase is Phase.JOIN)
    message = Gossip(gossip(record("d5"), slot=99).records, False, 5_000)
    assert do.Drop("malformed") in say(net, "d3", "d0", message)
    net.until(lambda: net["d3"].round >= 0)
    assert net["d3"].round < 5_000


def test_a_manifest_of_an_impossible_round_does_not_end_the_run() -> None:
    net = started(round={"count": 1000})
    say(net, "d0", "d1", Manifest(1 << 40, "train", b"viewview", []))
    net.run(1.0)
    assert net["d0"].protocol.phase is not Phase.FINISH


def test_data_of_an_unknown_block_is_refused() -> None:
    net = started()
    assert refusal(net["d0"], "d1", BlockKey("d9", 0)) == "unknown"


@pytest.mark.parametrize(("mode", "reason"), [("newest", "own"), ("average", None)])
def test_newest_refuses_the_own_block_from_other_devices(mode: str, reason: str | None) -> None:
    net = started(mixing={"mode": mode})
    assert refusal(net["d0"], "d1", BlockKey("d0", 0)) == reason


def test_data_does_not_change_the_membership() -> None:
    net = started()
    before = net["d0"].table()
    header = Update("d1", 0, "early", 99, 3, "train", "fp32", WIDTH, 1, 0, 4 * WIDTH)
    assert net["d0"].protocol.update(net.now, "d1", header, net["d0"].values, b"") == []
    assert net["d0"].table() == before


def test_a_request_for_a_block_that_is_not_held_is_not_answered() -> None:
    net = started()
    say(net, "d0", "d1", Request([("d9", 0, "early", -1)], 0))
    net.rounds(2)
    assert not [p for a in net["d0"].done(do.Publish) for p in a.parts if p[2] == "transfer"]


def test_a_ping_is_answered_with_its_number() -> None:
    net = started()
    digest = net["d0"].protocol.members.digest()
    assert say(net, "d0", "d1", Ping(2, digest)) == [do.Tell("d1", Ack(2, digest))]


def test_every_kind_of_control_message_has_a_handler() -> None:
    handled = {*started()["d0"].protocol._handlers}
    assert handled == {*get_args(Message)} - {Updates, Credit, Window, Transit}
