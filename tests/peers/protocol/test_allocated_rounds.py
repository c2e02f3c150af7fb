"""Rounds in which an allocator chooses the data to send, in simulated time."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator_free.averaging.rate_allocation import ALLOCATORS
from coordinator_free.identifiers import BlockKey, Part
from peers.protocol import actions as do
from tests.support.contents import everything
from tests.support.simulated import GROUPS, Network, small_config, still
from tests.support.simulated_allocation import SIZES, AllocatingNetwork

TIGHT = 300  # bytes: three parts in fp16, where a round of four devices asks for 24


def spread(net: Network) -> float:
    """The largest difference between two devices' copies of one value."""
    parts = {part for device in net for part in device.values}
    return max(float(np.ptp([d.values[part] for d in net], axis=0).max()) for part in parts)


@pytest.mark.parametrize("allocator", sorted(ALLOCATORS))
def test_a_tight_budget_is_never_exceeded(allocator: str) -> None:
    net = AllocatingNetwork(allocator)
    net.cohort(4, budget_bytes=TIGHT)
    net.rounds(30)
    assert 0 < max(net.spent.values()) <= TIGHT
    assert {d.round for d in net} == {net["d0"].round}  # no round waits for withheld data


@pytest.mark.parametrize("allocator", ["residual", "equal-share", "round-robin"])
def test_every_part_is_sent_eventually(allocator: str) -> None:
    net = AllocatingNetwork(allocator)
    devices = net.cohort(4, budget_bytes=TIGHT)
    net.rounds(60)
    for device in devices:
        sent = {(p.peer, part) for p in device.done(do.Publish) for part, _, _ in p.parts}
        others = {other.name for other in devices} - {device.name}
        assert sent == {
            (peer, Part(BlockKey(f"d{i}", 0), g)) for peer in others for i in range(4) for g in GROUPS
        }


def test_copies_converge_under_a_tight_budget() -> None:
    net = AllocatingNetwork()
    net.cohort(4, budget_bytes=TIGHT)
    net.rounds(20)
    before = spread(net)
    for device in net:
        device.move = still
    net.rounds(150)
    assert spread(net) < before / 20
    assert set(net.codecs) == set(SIZES)  # coarse codecs while copies differ much, fine ones at the end


def test_with_enough_budget_every_item_is_sent_in_its_largest_codec() -> None:
    net = AllocatingNetwork()
    net.cohort(3)
    net.rounds(10)
    assert set(net.codecs) <= {"fp16", "int8"}  # on so few values int8 loses less than fp16


def test_a_link_gets_no_more_than_its_capacity() -> None:
    net = AllocatingNetwork()
    net.caps["d0", "d1"] = 60
    net.cohort(3)
    net.rounds(15)
    for publish in net["d0"].done(do.Publish):
        size = sum(SIZES[codec] for codec in publish.codecs.values())
        assert publish.peer != "d1" or size <= 60


def test_a_round_records_the_matrices_sent_by_codec() -> None:
    net = AllocatingNetwork()
    net.cohort(4, budget_bytes=TIGHT)
    net.rounds(20)
    for device in net:
        for done in device.done(do.RoundDone):
            publishes = [p for p in device.done(do.Publish) if p.round == done.round]
            sent = [codec for p in publishes for codec in p.codecs.values()]
            told = [c for codecs in done.sent.values() for c, n in codecs.items() for _ in range(n)]
            assert sorted(sent) == sorted(told)


def test_without_an_allocator_a_round_records_the_codec_of_the_scenario() -> None:
    net = Network(small_config())
    net.cohort(2)
    net.rounds(5)
    last = net["d0"].done(do.RoundDone)[-1]
    assert last.sent == {group: {"fp16": 2} for group in GROUPS}
    assert not any(p.codecs for p in net["d0"].done(do.Publish))


def test_after_a_deletion_nothing_of_the_block_is_left() -> None:
    net = AllocatingNetwork()
    net.cohort(4, budget_bytes=TIGHT)
    net.rounds(12)
    gone = BlockKey("d3", 0)
    assert any(part.block == gone for part in net["d0"].values)
    net.signal("d3", "leave")
    net.until(lambda: all(gone not in device.protocol.blocks for device in net))
    for device in net:
        allocation = device.protocol.exchange.allocation
        assert allocation is not None
        held = [*everything(net.copies[device.name]), *everything(allocation.waiting)]
        assert not any(isinstance(one, Part) and one.block == gone for one in held)
        assert "d3" not in {peer for peer, _ in allocation.waiting.rounds}
    net.rounds(12)
    for device in net:
        copied = everything(net.copies[device.name])
        assert not any(isinstance(one, Part) and one.block == gone for one in copied)
        last = [p for p in device.done(do.Publish) if p.round >= device.round - 3]
        assert last and not any(part.block == gone for p in last for part, _, _ in p.parts)


def test_a_joiner_gets_the_requested_blocks_under_a_tight_budget() -> None:
    net = AllocatingNetwork()
    net.cohort(4, budget_bytes=TIGHT)
    net.rounds(15)
    net.add("d9", "d0", "d1", budget_bytes=TIGHT)
    net.until(lambda: net["d9"].round >= 0, 60.0)
    for i in range(4):
        assert any(np.any(values) for values in net["d9"].block(BlockKey(f"d{i}", 0)).values())
    assert max(net.spent.values()) <= TIGHT


def test_two_runs_with_the_same_seed_are_equal() -> None:
    def run() -> list[object]:
        net = AllocatingNetwork("random")
        net.cohort(4, budget_bytes=TIGHT)
        net.rounds(15)
        return [(d.name, p.round, p.peer, p.codecs) for d in net for p in d.done(do.Publish)]

    assert run() == run()
