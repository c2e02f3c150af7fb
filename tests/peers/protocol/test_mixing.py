"""Mixing in a whole network: the copies of a block after some rounds (method 5), in simulated time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator_free.identifiers import BlockKey, Part
from peers.protocol import actions as do
from tests.support.simulated import (
    GROUPS,
    MILLI,
    PART_BYTES,
    WIDTH,
    Network,
    SimDevice,
    Values,
    small_config,
    still,
)

TOPOLOGIES = ["full", "ring", "ring-chords"]


def started(size: int, kind: str = "full", **more: object) -> Network:
    """A cohort that has closed its first round, in which nothing moved."""
    mixing = more.pop("mixing", {"mode": "average"})
    net = Network(small_config(topology={"kind": kind}, mixing=mixing))
    net.cohort(size, move=still, **more)
    net.rounds(1)
    return net


def close_rounds(net: Network, number: int) -> None:
    net.until(lambda: all(len(device.done(do.RoundDone)) == number for device in net))


def copies(net: Network, key: BlockKey) -> list[Values]:
    return [device.values[Part(key, group)] for device in net for group in GROUPS]


def scatter(net: Network, key: BlockKey) -> None:
    """Give every device a different copy of the block, as if mixing had changed it."""
    rng = np.random.default_rng(0)
    for device in net:
        device.put(key, rng.normal(size=WIDTH))


def spread(net: Network, key: BlockKey) -> float:
    return float(np.max(np.ptp(copies(net, key), axis=0)))


def blocks(device: SimDevice) -> list[BlockKey]:
    return sorted(device.protocol.blocks)


@pytest.mark.parametrize("kind", TOPOLOGIES)
def test_average_keeps_the_network_mean_of_each_block_and_contracts_disagreement(kind: str) -> None:
    net = started(5, kind)
    for key in blocks(net["d0"]):
        scatter(net, key)
    before = {key: np.mean(copies(net, key), axis=0) for key in blocks(net["d0"])}
    wide = max(spread(net, key) for key in before)
    net.rounds(6)
    for key, mean in before.items():
        assert np.allclose(np.mean(copies(net, key), axis=0), mean, atol=1e-12)
        assert spread(net, key) < wide / 2


def test_average_agrees_in_one_round_on_a_complete_graph() -> None:
    net = started(4)
    scatter(net, BlockKey("d2", 0))
    net.rounds(2)
    assert spread(net, BlockKey("d2", 0)) < 1e-12


@pytest.mark.parametrize("gamma", [1.0, 0.25])
def test_gamma_is_the_share_that_is_mixed(gamma: float) -> None:
    net = started(2, mixing={"mode": "average", "gamma": gamma})
    net.run(0.05)  # during the local steps: values set now are mixed at the end of this round
    net["d0"].put(BlockKey("d0", 0), np.ones(WIDTH))
    net.rounds(1)
    expected = [1 - gamma / 2, gamma / 2]
    assert np.allclose([np.mean(device.values[Part(BlockKey("d0", 0), "early")]) for device in net], expected)


def test_newest_and_average_are_the_same_update_on_a_complete_graph() -> None:
    nets = [Network(small_config(mixing={"mode": mode})) for mode in ("average", "newest")]
    for net in nets:  # gamma = 1, omega = 1/M: the defaults
        net.cohort(4)
        close_rounds(net, 8)
    for a, b in zip(*nets, strict=True):
        assert a.values.keys() == b.values.keys() and len(a.values) == 4 * len(GROUPS)
        assert all(np.allclose(a.values[part], b.values[part], atol=1e-12) for part in a.values)
        assert any(np.abs(values).max() > 0.1 for values in a.values.values())


@pytest.mark.parametrize("kind", TOPOLOGIES)
def test_newest_makes_every_copy_equal_to_the_owners_once_nothing_moves(kind: str) -> None:
    net = Network(small_config(mixing={"mode": "newest"}, topology={"kind": kind}))
    net.cohort(5)
    net.rounds(3)
    for device in net:
        device.move = still
    net.rounds(4)
    for key in blocks(net["d0"]):
        assert spread(net, key) == 0.0
        assert np.abs(copies(net, key)[0]).max() > 0


def test_newest_damps_the_own_move_by_omega() -> None:
    net = Network(small_config(mixing={"mode": "newest", "omega": 0.25}))
    net.cohort(2, move=lambda device, round_: np.ones(WIDTH))
    close_rounds(net, 4)
    assert np.allclose(copies(net, BlockKey("d1", 0)), 1.0)


def test_paper_literal_mixes_own_blocks_only() -> None:
    net = Network(small_config(mixing={"mode": "paper-literal"}))
    net.cohort(3)
    net.rounds(5)
    own = [device.values[Part(BlockKey(device.name, 0), "early")] for device in net]
    assert np.abs(own[0]).max() > 0.1
    for device in net:
        foreign = [part for part in device.values if part.block.device != device.name]
        assert len(foreign) == 4 and not any(device.values[part].any() for part in foreign)


# -- lost, late and withheld -----------------------------------------------------------------------------


def test_the_weight_of_a_withheld_copy_stays_with_the_receiver() -> None:
    net = started(2, budget_bytes=0)
    scatter(net, BlockKey("d0", 0))
    before = copies(net, BlockKey("d0", 0))
    net.rounds(3)
    assert all(np.array_equal(a, b) for a, b in zip(before, copies(net, BlockKey("d0", 0)), strict=True))
    assert all(record.withheld for record in net["d0"].done(do.RoundDone)[-2:])


def test_a_neighbour_in_an_outage_gets_no_data_and_no_round_waits_for_it() -> None:
    net = started(3)
    net["d0"].outages = frozenset({"d1"})
    first = net["d0"].round + 1
    net.rounds(4)
    sent = [action for action in net["d0"].done(do.Publish) if action.round >= first]
    assert {action.peer for action in sent} == {"d1", "d2"}
    assert {bool(action.parts) for action in sent if action.peer == "d1"} == {False}
    assert {bool(action.parts) for action in sent if action.peer == "d2"} == {True}
    for device in net:
        took = [r.end_ns - r.start_ns for r in device.done(do.RoundDone) if r.round >= first]
        assert max(took) < 1_000 * MILLI  # the deadline is later


@given(budget=st.integers(1, 6), size=st.integers(2, 4), mode=st.sampled_from(["average", "newest"]))
@settings(max_examples=20)
def test_no_device_publishes_more_than_its_budget(budget: int, size: int, mode: str) -> None:
    net = Network(small_config(mixing={"mode": mode}))
    net.cohort(size, budget_bytes=budget * PART_BYTES)
    net.rounds(6)
    for device in net:
        spent: dict[int, int] = {}
        for action in device.done(do.Publish):
            spent[action.round] = spent.get(action.round, 0) + PART_BYTES * len(action.parts)
        assert 0 < max(spent.values()) <= budget * PART_BYTES


def test_under_a_tight_budget_every_block_still_reaches_all_devices() -> None:
    net = Network(small_config(mixing={"mode": "newest"}))
    net.cohort(4, budget_bytes=2 * PART_BYTES)
    net.rounds(30)
    for key in blocks(net["d0"]):
        assert all(values.any() for values in copies(net, key))


def test_a_round_closes_at_its_deadline_without_missing_data() -> None:
    net = started(3)
    net["d2"].train_ns = 5_000 * MILLI
    net.until(lambda: net["d0"].round >= 4)
    late = net["d0"].done(do.RoundDone)[-1]
    assert late.weights.keys() == {"d1"}
    assert late.end_ns - late.start_ns == 2_000 * MILLI  # round.deadline_s


def test_a_late_device_continues_with_the_round_of_the_others() -> None:
    net = started(3)
    net["d2"].train_ns = 5_000 * MILLI
    net.until(lambda: net["d0"].round >= 8)
    net["d2"].train_ns = 100 * MILLI
    net.rounds(5)
    assert max(device.round for device in net) - min(device.round for device in net) <= 1
    assert net["d0"].done(do.RoundDone)[-1].weights.keys() == {"d1", "d2"}


def test_an_unchanged_part_is_not_sent_twice() -> None:
    net = started(3)
    net.rounds(6)
    for device in net:  # only the own block counts as changed by local steps, even if they moved nothing
        late = [action for action in device.done(do.Publish) if action.round > 2]
        assert {part.block for action in late for part, _, _ in action.parts} == {BlockKey(device.name, 0)}


def test_average_keeps_the_mean_when_a_device_is_slower_than_the_others() -> None:
    net = started(6, "ring")
    net["d3"].train_ns = 350 * MILLI  # d1 publishes its next round while d2 still waits for d3
    key = BlockKey("d0", 0)
    scatter(net, key)
    before = np.mean(copies(net, key), axis=0)
    net.rounds(60)
    assert spread(net, key) < 1e-9
    assert np.allclose(np.mean(copies(net, key), axis=0), before, atol=1e-9)
