"""A run that goes on after an interruption: its devices begin in a later round with their blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Record, Status
from peers.protocol import actions as do
from tests.support.signatures import public, sign_as
from tests.support.simulated import Network, small_config

FIRST = 6


def ended(device: str, incarnation: int, slot: int, status: Status) -> Record:
    record = Record(device, incarnation, "tcp://nowhere:1", slot, 1, 1, status, 0, public(device))
    return replace(record, signature=sign_as(device, record.signed_data()))


PLACES = tuple((f"d{n}", n) for n in range(3))
BEFORE = tuple(ended(device, 0, slot, Status.WITHDRAWN) for device, slot in PLACES)


def resumed(*more: Record, places: tuple[tuple[str, int], ...] = PLACES, **options: Any) -> Network:
    net = Network(small_config(topology={"kind": "full"}, correction={"rounds": 3}))
    net.cohort(3, resumes=places, first_round=FIRST, ended=(*BEFORE, *more), **options)
    net.until(lambda: all(device.round >= FIRST for device in net))
    return net


def loaded(net: Network, device: str) -> set[BlockKey]:
    """The blocks that start with the values of the checkpoint."""
    return {a.key for kind in (do.AddBlock, do.OwnBlock) for a in net[device].done(kind) if a.resume}


def test_the_first_round_follows_the_last_checkpoint() -> None:
    net = resumed()
    net.rounds(2)
    for device in net:
        assert [done.round for done in device.done(do.RoundDone)][:2] == [FIRST, FIRST + 1]
        assert {done.phase for done in device.done(do.RoundDone)} == {"train"}


def test_every_block_goes_on_in_its_slot_in_the_next_incarnation() -> None:
    net = resumed()
    for device in net:
        assert device.slots == {BlockKey(f"d{n}", 1): n for n in range(3)}
        assert loaded(net, device.name) == {*device.slots}


def test_a_forgotten_block_does_not_come_back() -> None:
    """A file that still held the block, and an owner that is back, do not bring its values back."""
    left = ended("d3", 0, 3, Status.LEFT)
    net = resumed(left, places=(*PLACES, ("d3", 3)))
    assert all(device.protocol.members.tombstoned(left.key) for device in net)
    assert all(left.key not in device.slots for device in net)
    assert net["d0"].logged("tombstone") == [{"peer": "d3", "incarnation": 0}]
    back = net.add("d3", "d0", "d1")
    net.until(lambda: back.round >= 0)
    key = BlockKey("d3", 1)
    assert all(key in device.slots and key not in loaded(net, device.name) for device in net)


def test_a_retired_block_stays() -> None:
    retired = ended("d3", 0, 3, Status.RETIRED)
    net = resumed(retired, places=(*PLACES, ("d3", 3)))
    assert all(device.slots[retired.key] == 3 for device in net)
    assert all(retired.key in loaded(net, device.name) for device in net)


def test_a_correction_goes_on() -> None:
    net = resumed(correct_until=FIRST + 1)
    net.rounds(3)
    for device in net:
        assert [done.phase for done in device.done(do.RoundDone)][:3] == ["correction", "correction", "train"]


def test_a_device_without_a_checkpoint_takes_part_and_takes_the_copies_of_others() -> None:
    net = Network(small_config(topology={"kind": "full"}))
    for n, places in enumerate((PLACES, PLACES, ())):
        others = [f"d{m}" for m in range(3) if m != n]
        net.add(f"d{n}", *others, cohort=3, resumes=places, first_round=FIRST, ended=BEFORE)
    net.until(lambda: all(device.round >= FIRST for device in net))
    assert {device.slots[BlockKey("d2", 1)] for device in net} == {3}  # no slot that another block had
    assert loaded(net, "d2") == set() and loaded(net, "d0") == {BlockKey("d0", 1), BlockKey("d1", 1)}
