"""A member that invents claims and times neither prevents a leave nor takes the slot of one that trains."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Record, Status
from coordinator_free.membership.table import JUMP
from peers.protocol import actions as do
from peers.protocol.membership import FREE_LOSSES
from tests.support.membership_records import filled, make
from tests.support.signatures import public, table
from tests.support.simulated import SECOND, Network, SimDevice, small_config
from tests.support.simulated_checks import agreed, has_gone, started

Records = list[Record]


def tell(net: Network, source: str, target: SimDevice, records: Records) -> None:
    """A member tells records that it has signed itself, or forged."""
    gossip = target.protocol._state.gossip(records)
    net._handle(target, lambda now: target.protocol.on_message(now, source, gossip))


def own_record(net: Network, device: str) -> Record:
    record = net[device].protocol.own
    assert record is not None
    return record


def said(member: str, record: Record, **changes: Any) -> Record:
    """A record that a member signs about itself, with values that it has invented."""
    fields = {**record.to_dict(), **changes}
    kept = {k: v for k, v in fields.items() if k not in ("device", "signature", "public")}
    return make(member, **{**kept, "status": Status(kept["status"])})


def invented(number: int, slot: int) -> Record:
    return make(f"m{number}", slot=slot, claimed=0, lamport=1, address="sim://nobody")


# -- times -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lamport", [2**20, 2**47, 2**48])
def test_a_record_from_the_far_future_does_not_prevent_a_leave(lamport: int) -> None:
    net = started(4)
    hostile = said("d3", own_record(net, "d3"), lamport=lamport)
    for device in ("d0", "d1", "d2"):
        tell(net, "d3", net[device], [hostile])
    net.run(1.0)
    net.signal("d1", "leave")
    net.run(2.0)
    assert net["d1"].exit == do.Exit(0, "leave")
    assert has_gone(net, BlockKey("d1", 0))
    assert all(net[d].protocol.members.tombstoned(BlockKey("d1", 0)) for d in ("d0", "d2"))


@given(st.lists(st.integers(1, 2**48), max_size=30))
def test_one_record_moves_the_clock_by_a_bounded_step(times: list[int]) -> None:
    members = table("d0")
    for number, lamport in enumerate(times):
        members.merge([make(f"m{number}", lamport=lamport)])
    own = members.claim("d0", "tcp://d0", public("d0"), 64, 0)
    assert own.lamport <= len(times) * JUMP + 1
    assert members.amend(own).lamport == own.lamport + 1


def test_an_owner_can_always_make_a_later_record() -> None:
    members = table("d0")
    members.merge([make("d0", lamport=2**40)])  # of its earlier life
    (old,) = list(members)
    assert members.amend(old, status=Status.LEFT).lamport > 2**40


def test_a_claim_that_is_later_than_its_record_is_refused() -> None:
    members = table()
    assert members.merge([make("d1", lamport=3, claimed=4)]) == [] and members.refused == 1


def test_nobody_else_can_claim_the_own_id() -> None:
    net = started(3)
    fresh = net.add("d7", "d0")
    thief = Record("d7", 0, "sim://x", 6, 1, 1, public=public("mallory"))
    tell(net, "d1", fresh, [thief])
    assert fresh.protocol.members.get(BlockKey("d7", 0)) is None


# -- slots -------------------------------------------------------------------------------------------------

CLAIMS: dict[str, Callable[[Record], dict[str, Any]]] = {
    "in the same incarnation": lambda r: {"slot": 1, "claimed": 0, "lamport": r.lamport + 1},
    "in a new incarnation": lambda r: {
        "incarnation": 1, "slot": 1, "claimed": 0, "lamport": r.lamport + 1
    },
    "as if it had finished": lambda r: {
        "incarnation": 1, "slot": 1, "claimed": 0, "lamport": r.lamport + 1, "status": Status.FINISHED
    },
    "as if it had retired": lambda r: {
        "incarnation": 1, "slot": 1, "claimed": 0, "lamport": r.lamport + 1, "status": Status.RETIRED
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", CLAIMS.values(), ids=CLAIMS)
def test_an_invented_early_claim_takes_no_slot_of_an_owner_that_trains(
    changes: Callable[[Record], dict[str, Any]],
) -> None:
    net = started(4)
    before = own_record(net, "d1")
    net.crash("d3")  # it says nothing but this
    hostile = said("d3", own_record(net, "d3"), **changes(own_record(net, "d3")))
    for device in ("d0", "d1", "d2"):
        tell(net, "d3", net[device], [hostile])
    net.run(1.0)
    assert own_record(net, "d1").key == before.key and not net["d1"].logged("lost_slot")
    assert all(net[d].slots[before.key] == 1 for d in ("d0", "d1", "d2"))
    net.rounds(2)
    assert all(net[d].exit is None for d in ("d0", "d1", "d2"))


def test_a_retired_block_is_not_erased_by_an_invented_claim() -> None:
    net = started(4)
    net.signal("d1", "retire")
    net.run(1.0)
    hostile = said("d3", own_record(net, "d3"), slot=1, claimed=0, lamport=99)
    for device in ("d0", "d2"):
        tell(net, "d3", net[device], [hostile])
    net.run(1.0)
    assert all(BlockKey("d1", 0) in net[d].slots for d in ("d0", "d2"))


def test_a_newcomer_that_loses_its_slot_again_and_again_goes_on() -> None:
    """Every claim of the newcomer is answered with an earlier one, also when no slot is left."""
    net = started(3, membership={"settle_s": 5.0})
    fresh = net.add("d7", "d0", "d1", "d2")
    for number in range(60):
        net.run(0.1)
        if fresh.protocol.own is not None:
            slot = fresh.protocol.own.slot
            tell(net, "d1", fresh, [invented(number % 20, slot)])
    assert fresh.exit is None and len(fresh.logged("lost_slot")) > FREE_LOSSES
    net.run(60.0)  # the invented devices do not answer, and are given up
    assert fresh.exit is None and fresh.protocol.round >= 0


def test_invented_claims_of_all_slots_end_nobody() -> None:
    net = started(4)
    for device in list(net):
        tell(net, "d0", device, [invented(slot, slot) for slot in range(8)])
    net.rounds(5)
    assert all(device.exit is None for device in net) and len(list(net)) == 4


def test_a_device_that_lost_its_slot_does_not_hold_its_earlier_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its block until it has another slot. Then no part of the earlier block is in a manifest."""
    net = started(4)
    target = net["d1"]
    owners = target.protocol.members._owners
    monkeypatch.setattr(owners, "lost", lambda record, *_: record.key == BlockKey("d1", 0))
    target.protocol._membership._replicas.sync(net.now)
    tell(net, "d3", target, [invented(0, slot=7)])
    assert own_record(net, "d1").key == BlockKey("d1", 1)
    assert {part.block for part in target.protocol.exchange.held} == set(target.protocol.blocks)
    assert BlockKey("d1", 0) not in target.slots


def test_a_device_that_loses_one_slot_after_another_makes_few_incarnations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = started(4)
    target, lamport = net["d1"], 100
    with monkeypatch.context() as patch:
        patch.setattr(target.protocol.members._owners, "lost", lambda record, *_: record.device == "d1")
        for _ in range(60):
            lamport += 1
            tell(net, "d3", target, [said("d3", own_record(net, "d3"), lamport=lamport)])
            net.run(0.2)
    made = own_record(net, "d1").incarnation
    assert target.logged("waits_for_slot")
    assert FREE_LOSSES < made <= FREE_LOSSES + 5  # pauses of 1, 2, 4 and 8 probe periods of half a second
    net.run(20.0)
    assert own_record(net, "d1").status is Status.ALIVE and own_record(net, "d1").incarnation <= made + 1
    assert all(BlockKey("d1", own_record(net, "d1").incarnation) in net[d].slots for d in ("d0", "d2"))


def test_the_pause_after_a_loss_doubles_up_to_its_bound_and_begins_again() -> None:
    membership = started(3)["d1"].protocol._membership
    period = membership._state.config.membership.probe_s * SECOND
    pauses = []
    for number in range(12):
        membership._note_loss(number)
        pauses.append(membership._pause_ns / period)
    assert pauses == [0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 64, 64]
    assert membership._pauses(11 + int(63 * period)) and not membership._pauses(11 + int(64 * period))
    membership._note_loss(12 + int(129 * period))
    assert membership._pause_ns == 0


# -- the same result everywhere ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_random_orders_losses_and_partitions_end_in_one_result(seed: int) -> None:
    """Devices join, retire and leave while gossip is late or lost, and while two sides are apart."""
    draw = random.Random(seed)
    net = Network(
        small_config(adapter={"max_devices": 12}, membership={"quarantine_s": 3.0}),
        latency_ns=lambda: draw.randint(1, 60) * 1_000_000,
    )
    net.cohort(4, train_ns=SECOND // 2)
    net.rounds(3)
    left: set[BlockKey] = set()
    for number in range(4):
        side = set(draw.sample(["d0", "d1", "d2", "d3"], 2)) if draw.random() < 0.5 else set()
        side |= {f"d{5 + number}a"} if draw.random() < 0.5 else set()
        net.loses = lambda source, target, message, side=side: (  # type: ignore[misc]
            (source in side) != (target in side) or draw.random() < 0.02
        )
        net.run(draw.uniform(0.0, 8.0))
        seeds = [device.name for device in net]
        for name in (f"d{5 + number}a", f"d{5 + number}b")[: draw.randint(0, 2)]:
            net.add(name, *draw.sample(seeds, min(2, len(seeds))), train_ns=SECOND // 2)
        if draw.random() < 0.4 and len(list(net)) > 4:
            going = draw.choice([device for device in net if device.protocol.own is not None])
            left |= {going.protocol.own.key} if going.protocol.own is not None else set()
            net.signal(going.name, "leave")
        net.run(draw.uniform(0.0, 8.0))
    net.loses = lambda source, target, message: False
    net.run(50.0)
    assert agreed(net)
    assert all(set(device.slots).isdisjoint(left) for device in net)
    for device in net:
        assert len(set(device.slots.values())) == len(device.slots), device.slots


# -- an early claim, and then a crash verdict about the owner ----------------------------------------------


def verdict_on(net: Network, device: str) -> Record:
    return replace(own_record(net, device), status=Status.CRASHED)


@pytest.mark.parametrize("order", ["claim first", "verdict first", "in one message"])
def test_a_claim_and_a_crash_verdict_take_no_slot_of_a_trained_owner(order: str) -> None:
    net = started(4)
    hostile = said("d3", own_record(net, "d3"), slot=1, claimed=0, lamport=999)
    messages = {
        "claim first": [[hostile], [verdict_on(net, "d1")]],
        "verdict first": [[verdict_on(net, "d1")], [hostile]],
        "in one message": [[hostile, verdict_on(net, "d1")]],
    }[order]
    net.crash("d3")
    for records in messages:
        for device in ("d0", "d1", "d2"):
            tell(net, "d3", net[device], records)
    net.run(1.0)
    assert own_record(net, "d1").slot == 1 and not net["d1"].logged("lost_slot")
    assert len(net["d1"].logged("came_back")) == 1
    assert [action.carry for action in net["d1"].done(do.OwnBlock)[1:]] == [BlockKey("d1", 0)]
    assert all(net[d].slots.get(BlockKey("d1", 1)) == 1 for d in ("d0", "d1", "d2"))
    assert all(BlockKey("d3", 0) not in net[d].slots for d in ("d0", "d1", "d2"))


def test_a_second_verdict_does_not_help_a_claim_that_has_lost() -> None:
    net = started(4)
    hostile = said("d3", own_record(net, "d3"), slot=1, claimed=0, lamport=999)
    net.crash("d3")
    for _ in range(3):
        for device in ("d0", "d1", "d2"):
            tell(net, "d3", net[device], [hostile, verdict_on(net, "d1")])
        net.run(0.5)
    assert own_record(net, "d1").slot == 1
    assert not net["d1"].logged("lost_slot")


def test_a_verdict_about_another_device_ends_no_protection() -> None:
    """d2 is declared dead and returns; owners that are younger than 50 rounds keep their slots."""
    net = started(4)
    ghost = invented(7, slot=1)
    for records in ([verdict_on(net, "d2")], [ghost]):
        for device in ("d0", "d1", "d2"):
            tell(net, "d3", net[device], records)
        net.run(0.3)
    assert own_record(net, "d2").incarnation == 1
    assert own_record(net, "d1").key == BlockKey("d1", 0) and not net["d1"].logged("lost_slot")
    assert all(net[d].slots[BlockKey("d1", 0)] == 1 for d in ("d0", "d1", "d2"))


def test_a_lost_claim_is_no_holder_while_the_owner_is_away() -> None:
    members = filled([make("d1", slot=1), make("d2", slot=2)])
    members.network_round = 10
    members.merge([make("d3", slot=1, lamport=9, claimed=0)])
    owner = members.get(BlockKey("d1", 0))
    assert owner is not None
    members.merge([replace(owner, status=Status.CRASHED)])
    assert {key.device for key in members.blocks(keep_crashed=False)} == {"d2"}
    members.merge([make("d1", 1, slot=1, lamport=20, since_round=10)])
    assert {key.device for key in members.blocks(keep_crashed=False)} == {"d1", "d2"}
    assert [r.device for r in members.slot_losers()] == ["d3"]
