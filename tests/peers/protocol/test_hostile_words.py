"""What a member says about itself decides about others only within bounds that they can check."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Record, Status
from coordinator_free.membership.slots import NoFreeSlot
from peers.protocol import actions as do
from peers.protocol.state import AHEAD
from peers.protocol.state_machine import DeviceProtocol
from tests.support.membership_records import make
from tests.support.signatures import sign_as, verify
from tests.support.simulated import SECOND, Network, SimDevice, small_config
from tests.support.simulated_checks import started
from transport.wire.messages import Deleted, Gossip, Hello, Manifest, Message, Refuse, Request, Suspect

ROUNDS = 4000


def say(net: Network, source: str, message: Message, *targets: str) -> None:
    """`source` sends a message to these devices, beside what its protocol sends."""
    for target in targets:
        device = net[target]
        net._handle(device, partial(device.protocol.on_message, source=source, message=message))


def gossip(*records: Record, round_: int = 0) -> Gossip:
    return Gossip([record.to_dict() for record in records], False, round_)


def late(round_: int = ROUNDS - 1) -> Manifest:
    return Manifest(round_, "train", b"v" * 16, [])


@pytest.mark.parametrize("size", [2, 3, 4, 6])
@pytest.mark.parametrize("kind", ["full", "ring"])
def test_an_empty_manifest_of_a_late_round_ends_no_run(size: int, kind: str) -> None:
    net = started(size, round={"count": ROUNDS}, topology={"kind": kind})
    liar, *honest = [device.name for device in net][::-1]
    before = {name: net[name].round for name in honest}
    for _ in range(10):
        say(net, liar, late(), *honest)
        net.rounds(1)
    closed = [done.round for done in net[honest[0]].done(do.RoundDone)]
    steps = [b - a for a, b in pairwise(closed)]
    assert set(steps) == {1} and all(net[name].live for name in honest)
    assert all(net[name].round <= before[name] + 60 for name in honest)


@pytest.mark.parametrize("size", [2, 3])
def test_a_silent_neighbour_moves_a_device_by_one_round_a_deadline(size: int) -> None:
    """It names a late round, and lets the others wait for their rounds until the deadline."""
    net = started(size, round={"count": ROUNDS, "deadline_s": 2.0})
    liar, *honest = [device.name for device in net][::-1]
    net.loses = lambda source, target, message: source == liar and isinstance(message, Manifest)
    first, start = {name: net[name].round for name in honest}, net.now
    while net.now < start + 60 * SECOND:
        net.run(1.9)
        say(net, liar, late(net[honest[0]].round + 1), *honest)
        say(net, liar, late(), *honest)
        for name in honest:
            net[name].protocol.peers[liar].manifests.clear()
    for name in honest:
        assert 5 < net[name].round - first[name] <= 60 / 1.9 + 2


def test_a_minority_makes_even_a_very_slow_device_skip_one_round_at_a_time() -> None:
    net = started(3, round={"count": ROUNDS, "deadline_s": 2.0})
    for name in ("d0", "d1"):
        net[name].train_ns = 60 * SECOND
    for _ in range(5):
        net.run(60.0)
        say(net, "d2", late(), "d0", "d1")
    closed = [done.round for done in net["d0"].done(do.RoundDone)]
    assert max(b - a for a, b in pairwise(closed)) <= 2


@pytest.mark.parametrize("slow", [("d1",), ("d0", "d1")])
@pytest.mark.parametrize("size", [2, 4])
def test_a_slow_device_follows_the_others(size: int, slow: tuple[str, ...]) -> None:
    """Its steps take almost two deadlines. On the ring, one of its two neighbours may be as slow."""
    net = started(size, topology={"kind": "ring"}, round={"count": ROUNDS, "deadline_s": 2.0})
    for name in slow:
        net[name].train_ns = 35 * SECOND // 10
    net.run(120.0)
    rounds = [device.round for device in net]
    assert max(rounds) - min(rounds) <= 4 and min(rounds) > 20


def test_a_device_still_follows_most_of_its_neighbours() -> None:
    net = started(4)
    net.stall("d0", 1.5)
    net.run(3.0)
    behind = net["d0"].round
    net.rounds(3)
    assert net["d0"].round >= max(device.round for device in net) - 1 > behind


def test_a_joiner_does_not_begin_in_a_round_that_one_member_invents() -> None:
    net = started(3, round={"count": ROUNDS})
    net.loses = lambda source, target, message: False
    joiner = net.add("d5", "d0", "d1", "d2")
    net.until(lambda: {"d0", "d1", "d2"} <= {n for n, p in joiner.protocol.peers.items() if p.greeted})
    say(net, "d2", late(), "d5")
    net.until(lambda: joiner.round >= 0)
    assert joiner.round <= max(net[name].round for name in ("d0", "d1")) + AHEAD


def test_a_joiner_that_only_hostile_members_have_greeted_does_not_begin_in_their_round() -> None:
    """The honest neighbours are slow: they answer no message for a while."""
    net = started(5, round={"count": ROUNDS, "deadline_s": 2.0})
    honest, hostile = ("d0", "d1", "d2"), ("d3", "d4")
    net.loses = lambda source, target, message: (
        "d5" in (source, target) and bool({source, target} & {*honest})
    )
    joiner = net.add("d5", *hostile)
    net.until(lambda: all(n in joiner.protocol.peers and joiner.protocol.peers[n].greeted for n in hostile))
    for name in hostile:
        say(net, name, late(), "d5")
    net.until(lambda: joiner.round >= 0)
    assert joiner.round <= max(net[name].round for name in honest) + AHEAD
    net.loses = lambda source, target, message: False
    net.run(10.0)
    rounds = [net[name].round for name in (*honest, "d5")]
    assert max(rounds) - min(rounds) <= 2 and max(rounds) < ROUNDS // 2


def test_an_invented_first_round_keeps_nobody_in_correction() -> None:
    net = started(3, round={"count": ROUNDS}, correction={"rounds": 3})
    for since in (1 << 40, ROUNDS - 1):
        say(net, "d2", gossip(make("ghost", slot=5, since_round=since)), "d0", "d1")
    net.run(0.5)
    state = net["d0"].protocol._state
    assert state.correct_until <= net["d0"].round + AHEAD + 3


# -- refusals ------------------------------------------------------------------------------------------


def test_one_refusal_ends_no_joiner() -> None:
    net = started(3)
    joiner = net.add("d5", "d0", "d1", "d2")
    net.until(lambda: "d2" in joiner.protocol.peers)
    for _ in range(100):
        say(net, "d2", Refuse("\n\x1b[31mno" * 20), "d5")
    net.until(lambda: joiner.round >= 0)
    refused = joiner.logged("refused")
    assert len(refused) == 1 and refused[0]["reason"].isprintable()


def test_a_joiner_that_all_refuse_ends() -> None:
    net = started(3)
    joiner = net.add("d5", "d0", "d1", "d2", bases="other")
    net.until(lambda: joiner.exit is not None)
    assert joiner.exit is not None and joiner.exit.code == 1 and "refused d5" in joiner.exit.reason


# -- members and blocks --------------------------------------------------------------------------------


def test_a_thousand_invented_members_take_a_bounded_number_of_blocks_and_links() -> None:
    net = started(3)
    slots = net.config.adapter.max_devices
    ghosts = [make(f"g{n}", slot=n % slots, lamport=50 + n) for n in range(1000)]
    for start in range(0, 1000, 200):
        say(net, "d2", gossip(*ghosts[start : start + 200]), "d0", "d1")
    for name in ("d0", "d1"):
        protocol = net[name].protocol
        assert len(protocol.blocks) <= 2 * slots and len(protocol.peers) <= 3 + 2 * slots
        assert len(protocol.members.alive()) <= 2 * slots
        assert {BlockKey(f"d{n}", 0) for n in range(3)} <= set(protocol.blocks)
        assert net[name].dropped["crowded"] > 0


def test_withdrawn_incarnations_are_bounded_and_a_leave_still_reaches_all() -> None:
    net = started(3)
    for start in range(0, 3000, 200):
        some = [make("d2", n, 2, 50, Status.WITHDRAWN) for n in range(start + 1, start + 201)]
        say(net, "d2", gossip(*some), "d0", "d1")
    assert all(sum(1 for _ in net[name].protocol.members) <= 1024 + 16 * 8 for name in ("d0", "d1"))
    net.signal("d1", "leave")
    net.until(lambda: BlockKey("d1", 0) not in net["d0"].slots)
    assert net["d0"].protocol.members.tombstoned(BlockKey("d1", 0))


def test_a_record_about_this_device_needs_its_key() -> None:
    net = Network(small_config())
    first = net.add("d0", cohort=2)
    forged = make("d1", (1 << 31), slot=1)
    say(net, "d0", gossip(replace(forged, public=b"public:x")), "d0")
    second = net.add("d1", "d0", cohort=2)
    fake = replace(forged, public=b"public:x", signature=b"")
    fake = replace(fake, signature=sign_as("x", fake.signed_data()))
    say(net, "d0", gossip(fake), "d1")
    net.until(lambda: first.round > 2 and second.round > 2)
    assert second.protocol.own is not None and second.protocol.own.incarnation == 0


def test_an_allow_list_binds_the_signing_key() -> None:
    """The first key that is said for an id does not win over the listed one."""
    net = started(3)
    listed = {"d1": b"public:d1", "d2": b"public:d2", "d5": b"public:d5"}
    net["d0"].protocol._membership._admission._signer_of = lambda device: listed.get(device, b"")
    fake = replace(make("d5", slot=5), public=b"public:x", signature=b"")
    fake = replace(fake, signature=sign_as("x", fake.signed_data()))
    say(net, "d2", gossip(fake, make("ghost", slot=6)), "d0")
    members = net["d0"].protocol.members
    assert members.newest("d5") is None and members.newest("ghost") is None
    assert net["d0"].dropped["unbound"] == 1
    say(net, "d2", gossip(make("d5", slot=5)), "d0")
    assert members.newest("d5") is not None


def test_manifests_and_notes_of_a_peer_are_bounded() -> None:
    net = started(3, mode="newest")
    items = [(f"x{n}", 0, "early", 1, "sent") for n in range(net.config.adapter.max_devices * 4 + 1)]
    say(net, "d2", Manifest(5, "train", b"v" * 16, items), "d0")
    assert net["d0"].dropped["malformed"] == 1
    for round_ in range(50, 90):
        say(net, "d2", late(round_), "d0")
    assert len(net["d0"].protocol.peers["d2"].manifests) <= 5


def test_a_request_of_a_peer_that_is_no_member_is_refused() -> None:
    net = started(3)
    hello = Hello("sim://x", {"bases": "q"}, True, net["d0"].protocol._connections._capabilities, 0)
    say(net, "x", hello, "d0")
    say(net, "x", Request([("d0", 0, "early", -1)], 0), "d0")
    assert net["d0"].dropped["stranger"] == 1


def test_suspicions_and_hellos_are_answered_at_a_bounded_rate() -> None:
    net = started(3)
    device: SimDevice = net["d0"]
    before = len(device.told)
    for _ in range(200):
        own: Any = device.protocol.own
        say(net, "d2", Suspect("d0", 0, own.lamport, "d2"), "d0")
        say(net, "d2", Gossip([], True, 0), "d0")
    tables = [a for a in device.told[before:] if isinstance(a, do.Tell) and isinstance(a.message, Gossip)]
    assert len(device.logged("refuted")) == 1 and len(tables) <= 10


def test_log_lines_that_peers_cause_are_bounded() -> None:
    net = started(2)
    state = net["d0"].protocol._state
    for _ in range(20_000):
        state.log("peer_joined", peer="x")
    assert sum(isinstance(action, do.Log) for action in state.flush()) < 10_020


def test_confirmations_of_unknown_blocks_are_ignored() -> None:
    net = started(3)
    say(net, "d2", Deleted([("ghost", n, "*") for n in range(1000)]), "d0")
    assert not net["d0"].protocol._replicas._news


def test_a_departure_that_is_signed_again_starts_no_further_correction() -> None:
    net = started(4, round={"count": 400})
    net.signal("d3", "leave")
    net.run(3.0)
    state = net["d0"].protocol._state
    left, events = state.members.get(BlockKey("d3", 0)), state.events
    assert left is not None and left.status is Status.LEFT and events == 1
    for later in range(1, 4):
        again = replace(left, lamport=left.lamport + later, signature=b"")
        signed = replace(again, signature=sign_as("d3", again.signed_data()))
        say(net, "d1", gossip(signed), "d0")
    net.run(1.0)
    assert state.members.get(BlockKey("d3", 0)) != left
    assert state.events == events and len(net["d0"].logged("peer_gone")) == 1


def test_a_member_that_begins_to_train_again_and_again_starts_one_correction() -> None:
    net = started(3, round={"count": 400})
    events = net["d0"].protocol._state.events
    for lamport in range(50, 90):
        since = net["d0"].round if lamport % 2 else -1
        say(net, "d2", gossip(make("ghost", slot=5, lamport=lamport, since_round=since)), "d0", "d1")
    assert net["d0"].protocol._state.events == events + 1


def test_no_free_slot_is_no_fault_of_the_sender_of_a_table() -> None:
    """Without patience the device ends with the error of its own timer, not in the handling of a message."""
    net = Network(small_config(adapter={"max_devices": 2}))
    impatient = small_config(adapter={"max_devices": 2}, membership={"settle_s": 1e-9})
    net.cohort(2)
    net.rounds(1)
    state = net["d0"].protocol._state
    joiner = DeviceProtocol(
        replace(state.me, device="d7", address="sim://d7", public=b"public:d7", seeds=("sim://d0",)),
        *(impatient, {"bases": "q"}, lambda other: None, state.sizes, lambda group, codec=None: 100),
        *(partial(sign_as, "d7"), verify),
    )
    joiner.start(net.now)
    state.flush()
    hello = Hello("sim://d0", {"bases": "q"}, False, net["d0"].protocol._connections._capabilities, 0)
    joiner.on_message(net.now, "d0", hello)
    joiner.on_message(net.now, "d0", state.gossip(state.members))
    with pytest.raises(NoFreeSlot):
        for _ in range(20):
            joiner.tick(joiner.next_timer_ns() or 0)
