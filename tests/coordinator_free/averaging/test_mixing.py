"""Mixing modes: the operations that they return, carried out on small arrays."""

from __future__ import annotations

from collections.abc import Mapping

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator_free.averaging.mixing import (
    MODES,
    Arrival,
    Average,
    Mix,
    Newest,
    PaperLiteral,
    metropolis_row,
)
from coordinator_free.averaging.topology import Shape, build, spectral_rho
from coordinator_free.identifiers import BlockKey, Part

GROUP = "mid"
Copies = dict[Part, np.ndarray]


def part(device: str, group: str = GROUP) -> Part:
    return Part(BlockKey(device, 0), group)


def apply(mixes: list[Mix], copies: Mapping[Part, np.ndarray]) -> Copies:
    """own <- (1 - sum of weights) own + sum of weight * values."""
    after = dict(copies)
    for mix in mixes:
        kept = 1 - sum(weight for weight, _ in mix.terms)
        after[mix.part] = kept * copies[mix.part] + sum(weight * values for weight, values in mix.terms)
    return after


def offer(copies: Mapping[Part, np.ndarray], version: int = 1) -> dict[Part, Arrival]:
    return {p: Arrival(version, values) for p, values in copies.items()}


def copies_of(devices: list[str], seed: int) -> Copies:
    rng = np.random.default_rng(seed)
    return {part(d): rng.normal(size=(3, 2)) for d in devices}


def test_the_modes_of_the_registry():
    assert set(MODES) >= {"average", "newest", "paper-literal"}


# -- average ---------------------------------------------------------------------------------------------


def average_step(graph: nx.Graph, state: dict[str, Copies], gamma: float = 1.0) -> dict[str, Copies]:
    """One round of `average` in which everybody hears all neighbours."""
    after = {}
    for device, copies in state.items():
        weights = {p: gamma * w for p, w in metropolis_row(graph, device).items()}
        arrived = {p: offer(state[p]) for p in graph[device]}
        after[device] = apply(
            Average().combine(BlockKey(device, 0), dict.fromkeys(copies, 0), weights, arrived), copies
        )
    return after


@pytest.mark.parametrize("kind", ["full", "ring", "ring-chords"])
def test_average_is_the_matrix_of_method_5_block_by_block(kind):
    devices = ["d0", "d1", "d2", "d3", "d4"]
    graph, gamma = build(devices, Shape(kind)), 0.4
    state = {d: copies_of(devices, seed) for seed, d in enumerate(devices)}
    after = average_step(graph, state, gamma)
    for i in devices:
        row = {j: gamma * w for j, w in metropolis_row(graph, i).items()}
        row[i] = 1 - sum(row.values())
        for block in state[i]:
            np.testing.assert_allclose(after[i][block], sum(w * state[j][block] for j, w in row.items()))


def test_average_keeps_the_mean_and_contracts_the_disagreement_by_rho():
    devices = [f"d{i}" for i in range(6)]
    graph = build(devices, Shape("ring"))
    state = {d: copies_of(["d0"], seed) for seed, d in enumerate(devices)}
    w = np.array([[metropolis_row(graph, i).get(j, 0.0) for j in devices] for i in devices])
    rho = spectral_rho(w + np.diag(1 - w.sum(axis=1)))

    def mean_and_spread(now: dict[str, Copies]) -> tuple[np.ndarray, float]:
        stacked = np.stack([now[d][part("d0")] for d in devices])
        return stacked.mean(axis=0), float(np.linalg.norm(stacked - stacked.mean(axis=0)))

    before, after = mean_and_spread(state), mean_and_spread(average_step(graph, state))
    np.testing.assert_allclose(after[0], before[0])
    assert after[1] <= rho * before[1] + 1e-12


@given(st.sets(st.sampled_from(["d1", "d2", "d3"])))
def test_the_weight_of_missing_copies_returns_to_the_own_copy(heard):
    devices = ["d0", "d1", "d2", "d3"]
    weights = metropolis_row(build(devices, Shape("full")), "d0")
    state = {d: copies_of(devices, seed) for seed, d in enumerate(devices)}
    arrived = {p: offer(state[p]) for p in heard}
    mixes = Average().combine(BlockKey("d0", 0), dict.fromkeys(state["d0"], 0), weights, arrived)
    after = apply(mixes, state["d0"])
    for block, own in state["d0"].items():
        expected = (1 - 0.25 * len(heard)) * own + sum(0.25 * state[p][block] for p in heard)
        np.testing.assert_allclose(after[block], expected)


def test_a_block_that_one_neighbour_withheld_is_mixed_with_the_others_only():
    state = {d: copies_of(["d0", "d1"], seed) for seed, d in enumerate(["d0", "d1", "d2"])}
    arrived = {"d1": offer({part("d0"): state["d1"][part("d0")]}), "d2": offer(state["d2"])}
    held = dict.fromkeys(state["d0"], 0)
    mixes = {m.part: m for m in Average().combine(BlockKey("d0", 0), held, {"d1": 0.3, "d2": 0.3}, arrived)}
    assert [w for w, _ in mixes[part("d0")].terms] == [0.3, 0.3]
    assert [w for w, _ in mixes[part("d1")].terms] == [0.3]


def test_a_block_that_is_not_held_is_never_mixed_in():
    stale = offer({part("gone"): np.ones((3, 2))}, version=99)
    for mode in (make() for make in MODES.values()):
        mixes = mode.combine(BlockKey("d0", 0), {part("d0"): 0}, {"d1": 0.5}, {"d1": stale})
        assert all(m.part.block.device != "gone" for m in mixes)


@pytest.mark.parametrize("mode", [Average(), Newest()])
def test_without_arrivals_nothing_is_mixed(mode):
    assert mode.combine(BlockKey("d0", 0), {part("d0"): 0, part("d1"): 0}, {"d1": 0.5}, {}) == []


# -- newest ----------------------------------------------------------------------------------------------


def newest(own: str, held: dict[str, int], arrived: dict[str, dict[str, int]]) -> dict[str, tuple[int, str]]:
    """Which version from whom ends up as the copy of which device's block; values are "<peer>"."""
    offers = {p: {part(d): Arrival(v, p) for d, v in copies.items()} for p, copies in arrived.items()}
    mixes = Newest().combine(BlockKey(own, 0), {part(d): v for d, v in held.items()}, {}, offers)
    assert all(weight == 1.0 for m in mixes for weight, _ in m.terms)
    return {m.part.block.device: (m.version or 0, m.terms[0][1]) for m in mixes}


def test_newest_takes_the_highest_version_that_is_newer_than_its_own():
    got = newest("d0", {"d0": 5, "d1": 3, "d2": 9}, {"d3": {"d1": 4, "d2": 8}, "d4": {"d1": 7, "d2": 9}})
    assert got == {"d1": (7, "d4")}


def test_newest_never_replaces_the_own_block():
    assert newest("d0", {"d0": 1}, {"d1": {"d0": 99}}) == {}


def test_equal_versions_mean_equal_bytes_and_come_from_the_first_peer():
    assert newest("d0", {"d1": 0}, {"d5": {"d1": 2}, "d4": {"d1": 2}}) == {"d1": (2, "d4")}


def test_newest_reaches_the_far_side_of_a_ring_undiluted():
    devices = [f"d{i}" for i in range(6)]
    graph = build(devices, Shape("ring"))
    versions = {d: int(d == "d0") for d in devices}
    hops = 0
    while min(versions.values()) == 0:
        offers = {d: {p: {"d0": versions[p]} for p in graph[d]} for d in devices}
        got = {d: newest(d, {"d0": versions[d]}, offers[d]) for d in devices}
        versions = {d: got[d].get("d0", (versions[d], ""))[0] for d in devices}
        hops += 1
    assert hops == nx.diameter(graph)


def test_damping_of_each_mode():
    assert Newest().damping(6, None) == pytest.approx(1 / 6)
    assert Newest().damping(6, 0.5) == 0.5
    assert Newest().damping(0, None) == 1.0
    assert Average().damping(6, None) == PaperLiteral().damping(6, None) == 1.0


def newest_step(state: dict[str, Copies], version: int) -> dict[str, Copies]:
    after = {}
    for device, copies in state.items():
        arrived = {
            p: {b: Arrival(version if b == part(p) else version - 1, v) for b, v in state[p].items()}
            for p in state
            if p != device
        }
        held = {b: version if b == part(device) else version - 1 for b in copies}
        after[device] = apply(Newest().combine(BlockKey(device, 0), held, {}, arrived), copies)
    return after


def test_on_a_complete_graph_average_and_damped_newest_are_the_same_update():
    """gamma = 1, omega = 1/M: the share 1/M of the owner's move reaches everybody's copy in either mode."""
    devices = [f"d{i}" for i in range(5)]
    graph = build(devices, Shape("full"))
    start = copies_of(devices, seed=0)
    averaged = {d: dict(start) for d in devices}
    relayed = {d: dict(start) for d in devices}
    rng = np.random.default_rng(1)
    for version in range(1, 4):
        for device in devices:
            pull = rng.normal(size=(3, 2))  # the move depends on where the copy is, as a gradient does
            omega = Newest().damping(len(devices), None)
            for state, damping in ((averaged, 1.0), (relayed, omega)):
                own = state[device][part(device)]
                state[device][part(device)] = own + damping * (pull - 0.1 * own)
        averaged, relayed = average_step(graph, averaged), newest_step(relayed, version)
        for device in devices:
            for block in start:
                np.testing.assert_allclose(averaged[device][block], relayed[device][block], atol=1e-12)


# -- paper-literal ---------------------------------------------------------------------------------------


def test_paper_literal_mixes_blocks_of_different_owners():
    own, other = np.zeros((3, 2)), np.ones((3, 2))
    arrived = {"d1": {part("d1"): Arrival(1, other)}}
    (mix,) = PaperLiteral().combine(BlockKey("d0", 0), {part("d0"): 0}, {"d1": 0.5}, arrived)
    np.testing.assert_allclose(apply([mix], {part("d0"): own})[part("d0")], 0.5)


def test_paper_literal_stays_within_a_group_and_touches_the_own_block_only():
    held = {part("d0", "early"): 0, part("d0", "late"): 0, part("d1", "early"): 0}
    arrived = {"d1": {part("d1", "early"): Arrival(1, "early of d1")}}
    (mix,) = PaperLiteral().combine(BlockKey("d0", 0), held, {"d1": 0.5}, arrived)
    assert mix.part == part("d0", "early")
    assert mix.terms == ((0.5, "early of d1"),)


def test_only_paper_literal_mixes_across_bases_and_does_not_relay():
    literal = {name for name, make in MODES.items() if make().foreign_basis}
    assert literal == {"paper-literal"}
    assert not PaperLiteral().relays and Average().relays and Newest().relays
