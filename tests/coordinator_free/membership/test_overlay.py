"""The overlay: equal on all devices, few changes, few hops."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator_free.membership.overlay import Overlay


def names(count: int) -> list[str]:
    return [f"d{i}" for i in range(count)]


def overlay(members: Collection[str], seed: int, k: int = 3) -> Overlay:
    made = Overlay(seed, k)
    made.update(members)
    return made


def graph(count: int, seed: int, k: int = 3) -> nx.Graph[str]:
    members = names(count)
    of = overlay(members, seed, k)
    made: nx.Graph[str] = nx.Graph()
    made.add_nodes_from(members)
    made.add_edges_from((a, b) for a in members for b in of.partners(a))
    return made


@given(st.integers(1, 20), st.integers(0, 99))
def test_links_are_mutual_and_nobody_has_fewer_than_it_picks(count: int, seed: int) -> None:
    members = names(count)
    linked = {a: overlay(members, seed).partners(a) for a in members}
    for a in members:
        assert all(a in linked[b] for b in linked[a])
        assert len(linked[a]) >= min(3, count - 1) and a not in linked[a]


def test_the_order_of_the_members_does_not_matter() -> None:
    members = names(12)
    assert overlay(members, 1).partners("d3") == overlay(members[::-1], 1).partners("d3")


def test_another_seed_makes_other_links() -> None:
    first, second = overlay(names(20), 0), overlay(names(20), 1)
    assert any(first.partners(d) != second.partners(d) for d in names(20))


@given(st.integers(5, 30), st.integers(0, 99))
def test_when_a_device_leaves_only_those_that_picked_it_pick_another(count: int, seed: int) -> None:
    members = names(count)
    for name in members[1:]:
        before, after = overlay(members, seed).picks(name), overlay(members[1:], seed).picks(name)
        if members[0] not in before:
            assert after == before
        else:
            assert [d for d in before if d != members[0]] == after[:2]


@given(st.lists(st.sets(st.sampled_from(names(12)), max_size=12), min_size=1, max_size=6), st.integers(0, 9))
def test_updates_lead_to_the_picks_of_the_members_as_they_are_now(changes: list[set[str]], seed: int) -> None:
    kept = Overlay(seed, 3)
    for members in changes:
        kept.update(members)
        fresh = overlay(members, seed)
        assert all(kept.partners(d) == fresh.partners(d) for d in names(12))  # members, and others


def test_an_update_hashes_few_pairs_for_each_device_that_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, hashed = overlay(names(100), 0), Counter[str]()
    weigh = Overlay._weight
    monkeypatch.setattr(Overlay, "_weight", lambda *of: hashed.update("x") or weigh(*of))
    kept.update(names(101))
    assert hashed.total() == 200  # of the newcomer as picked and as picker


@pytest.mark.parametrize("count", [4, 16, 32, 64])
def test_gossip_reaches_all_devices_in_few_hops_over_few_links(count: int) -> None:
    for seed in range(20):
        made = graph(count, seed)
        assert nx.is_connected(made)
        assert nx.diameter(made) <= 2 + math.log2(count) / 2
        assert sum(d for _, d in made.degree()) <= 2 * 3 * count
