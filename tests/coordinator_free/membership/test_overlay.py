"""The overlay: equal on all devices, few changes, few hops."""

from __future__ import annotations

import math

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator_free.membership.overlay import partners, picks


def names(count: int) -> list[str]:
    return [f"d{i}" for i in range(count)]


def graph(count: int, seed: int, k: int = 3) -> nx.Graph[str]:
    members = names(count)
    made: nx.Graph[str] = nx.Graph()
    made.add_nodes_from(members)
    made.add_edges_from((a, b) for a in members for b in partners(a, members, seed, k))
    return made


@given(st.integers(1, 20), st.integers(0, 99))
def test_links_are_mutual_and_nobody_has_fewer_than_it_picks(count: int, seed: int) -> None:
    members = names(count)
    linked = {a: partners(a, members, seed, 3) for a in members}
    for a in members:
        assert all(a in linked[b] for b in linked[a])
        assert len(linked[a]) >= min(3, count - 1) and a not in linked[a]


def test_the_order_of_the_members_does_not_matter() -> None:
    members = names(12)
    assert partners("d3", members, 1, 3) == partners("d3", members[::-1], 1, 3)


def test_another_seed_makes_other_links() -> None:
    assert any(partners(d, names(20), 0, 3) != partners(d, names(20), 1, 3) for d in names(20))


@given(st.integers(5, 30), st.integers(0, 99))
def test_when_a_device_leaves_only_those_that_picked_it_pick_another(count: int, seed: int) -> None:
    members = names(count)
    for name in members[1:]:
        before, after = picks(name, members, seed, 3), picks(name, members[1:], seed, 3)
        if members[0] not in before:
            assert after == before
        else:
            assert [d for d in before if d != members[0]] == after[:2]


@pytest.mark.parametrize("count", [4, 16, 32, 64])
def test_gossip_reaches_all_devices_in_few_hops_over_few_links(count: int) -> None:
    for seed in range(20):
        made = graph(count, seed)
        assert nx.is_connected(made)
        assert nx.diameter(made) <= 2 + math.log2(count) / 2
        assert sum(d for _, d in made.degree()) <= 2 * 3 * count
