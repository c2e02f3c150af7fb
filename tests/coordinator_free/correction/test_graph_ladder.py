"""Denser and sparser graphs: the same for every device, connected, within degrees and feasible links."""

from __future__ import annotations

import itertools
import random

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator_free.averaging.topology import Shape, build
from coordinator_free.correction.graph_ladder import Bounds, Ladder, edge, ladder, rho


def ids(count: int) -> list[str]:
    return [f"d{i}" for i in range(count)]


def all_links(members, cost=1.0) -> dict:
    return {edge(a, b): cost for a, b in itertools.combinations(members, 2)}


def graph(members, edges) -> nx.Graph:
    made: nx.Graph[str] = nx.Graph()
    made.add_nodes_from(members)
    made.add_edges_from(edges)
    return made


def of(rungs: Ladder, k: int, members) -> nx.Graph:
    return graph(members, rungs.at(k).edges)


@st.composite
def cases(draw):
    members = ids(draw(st.integers(2, 7)))
    costs = {e: draw(st.floats(0.1, 10.0)) for e in all_links(members) if draw(st.integers(0, 4))}
    kind = draw(st.sampled_from(["full", "ring", "random-geometric"]))
    bounds = Bounds(draw(st.integers(1, 3)), draw(st.integers(2, 6)), up=4, down=4)
    return members, build(members, Shape(kind, radius=0.4)), costs, bounds, draw(st.integers(0, 99))


@settings(max_examples=60)
@given(cases())
def test_rungs_keep_to_feasible_links_degrees_and_stay_connected(case):
    members, start, costs, bounds, seed = case
    found = ladder(members, start, costs, seed, bounds)
    base = of(found, 0, members)
    feasible = graph(members, costs)
    for k in range(-found.base, found.top + 1):
        made = of(found, k, members)
        assert nx.is_connected(made) == nx.is_connected(base)
        if nx.is_connected(feasible):
            assert found.at(k).edges <= costs.keys()
        for device, degree in made.degree():
            low = min(bounds.min_degree, base.degree(device))
            high = max(bounds.max_degree, base.degree(device))
            assert low <= degree <= high


@settings(max_examples=40)
@given(cases(), st.randoms(use_true_random=False))
def test_every_device_makes_the_same_ladder(case, rng: random.Random):
    members, start, costs, bounds, seed = case
    again = graph(rng.sample(members, len(members)), [(b, a) for a, b in start.edges])
    shuffled = dict(rng.sample(sorted(costs.items()), len(costs)))
    assert ladder(members, start, costs, seed, bounds) == ladder(
        rng.sample(members, len(members)), again, shuffled, seed, bounds
    )


@settings(max_examples=40)
@given(cases())
def test_every_rung_up_lowers_rho(case):
    members, start, costs, bounds, seed = case
    found = ladder(members, start, costs, seed, bounds)
    rhos = [rung.rho for rung in found.rungs]
    assert all(a > b for a, b in itertools.pairwise(rhos[: found.base]))
    assert all(a > b for a, b in itertools.pairwise(rhos[found.base :]))


def test_among_edges_of_equal_cost_the_one_that_lowers_rho_most_is_added():
    members = ids(5)
    line = nx.path_graph(members)
    found = ladder(members, line, all_links(members), 0, Bounds(swaps=0, up=1, down=0))
    best = min(all_links(members).keys() - line.edges, key=lambda e: rho(graph(members, [*line.edges, e])))
    assert rho(of(found, 1, members)) == pytest.approx(rho(graph(members, [*line.edges, best])))
    assert len(found.added(1)) == 1 and found.dropped(1) == ()


def test_a_cheap_edge_with_a_better_rate_is_preferred_to_an_expensive_one():
    members = ids(5)
    line = nx.path_graph(members)
    cheap = all_links(members)
    (best,) = ladder(members, line, cheap, 0, Bounds(swaps=0, up=1, down=0)).added(1)
    dear = {**cheap, best: 100.0}
    assert ladder(members, line, dear, 0, Bounds(swaps=0, up=1, down=0)).added(1) != (best,)


def test_the_least_useful_edge_goes_first():
    members = ids(6)
    start = graph(members, [*nx.cycle_graph(members).edges, ("d0", "d2"), ("d0", "d3")])
    found = ladder(members, start, all_links(members), 0, Bounds(up=0, swaps=0, down=1))
    without = [rho(graph(members, start.edges - {e})) for e in start.edges]
    assert found.at(-1).rho == pytest.approx(min(without))
    assert found.at(-1).cost == found.at(0).cost - 1
    assert len(found.dropped(-1)) == 1 and found.added(-1) == ()


def test_edges_that_help_only_together_are_one_rung():
    """One chord in a ring of 6 raises rho from 0.667; the third one of three brings it to 0.5."""
    members = ids(6)
    found = ladder(members, nx.cycle_graph(members), all_links(members), 0, Bounds())
    assert found.at(0).rho == pytest.approx(2 / 3)
    assert [len(r.edges) for r in found.rungs[found.base :]] == [6, 8, 9, 11]
    assert found.at(2).rho == pytest.approx(0.5)


def test_a_swap_lowers_rho_at_no_more_cost():
    members = ids(6)
    lollipop = graph(members, [*itertools.combinations(members[:4], 2), ("d3", "d4"), ("d4", "d5")])
    found = ladder(members, lollipop, all_links(members), 0, Bounds(up=0, down=0))
    assert found.top == 2
    assert [r.cost for r in found.rungs] == [8, 8, 8]
    assert found.at(2).rho < found.at(1).rho < found.at(0).rho
    assert len(found.added(1)) == len(found.dropped(1)) == 1


def test_infeasible_edges_are_replaced_by_the_cheapest_feasible_ones():
    members = ids(4)
    costs = {("d0", "d1"): 1.0, ("d1", "d2"): 1.0, ("d0", "d3"): 5.0, ("d1", "d3"): 2.0}
    found = ladder(members, nx.path_graph(members), costs, 0, Bounds(swaps=0, up=0, down=0))
    assert found.at(0).edges == {("d0", "d1"), ("d1", "d2"), ("d1", "d3")}


def test_an_infeasible_edge_stays_where_nothing_else_connects():
    members = ids(3)
    costs = {("d0", "d1"): 1.0}
    found = ladder(members, nx.path_graph(members), costs, 0, Bounds())
    assert found.rungs[found.base].edges == {("d0", "d1"), ("d1", "d2")}


def test_rungs_beyond_the_ladder_are_clipped():
    members = ids(6)
    found = ladder(members, nx.cycle_graph(members), all_links(members), 0, Bounds())
    assert found.at(99) == found.rungs[-1] and found.at(-99) == found.rungs[0]
    assert found.clipped(99) == found.top and found.clipped(-99) == -found.base


def test_the_seed_breaks_ties():
    members = ids(8)
    ring, links = nx.cycle_graph(members), all_links(members)
    first = {ladder(members, ring, links, seed, Bounds(up=2)).added(1) for seed in range(8)}
    assert len(first) > 1


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_device_has_one_rung(count):
    found = ladder(ids(count), graph(ids(count), []), {}, 0, Bounds())
    assert found.rungs == (found.at(0),) and found.at(0).edges == frozenset()


def test_rho_with_a_mixing_strength():
    full = nx.complete_graph(ids(4))
    assert rho(full) == pytest.approx(0, abs=1e-12)
    assert rho(full, gamma=0.4) == pytest.approx(0.6)
    assert rho(graph(ids(4), [("d0", "d1")])) == pytest.approx(1)
