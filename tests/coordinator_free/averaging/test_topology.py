"""The learning graph: connected, and the same on every device."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator_free.averaging.mixing import metropolis_row
from coordinator_free.averaging.topology import (
    TOPOLOGIES,
    Shape,
    build,
    natural,
    position,
    spectral_rho,
    topology,
)

KINDS = ["full", "ring", "ring-chords", "regular", "random-geometric"]
shapes = st.builds(
    Shape,
    st.sampled_from(KINDS),
    st.integers(0, 4),
    st.floats(0.01, 2.0),
    st.integers(0, 2**31),
    st.sampled_from([2, 4, 6]),
)
member_lists = st.lists(st.integers(0, 99).map("d{}".format), min_size=1, max_size=12, unique=True)


def ids(count: int) -> list[str]:
    return [f"d{i}" for i in range(count)]


def degrees(count: int, **shape) -> set[int]:
    return {degree for _, degree in build(ids(count), Shape(**shape)).degree()}


def edges(graph: nx.Graph) -> set[frozenset[str]]:
    return {frozenset(edge) for edge in graph.edges}


@given(member_lists, shapes)
def test_connected_without_loops_on_all_members(members, shape):
    graph = build(members, shape)
    assert set(graph) == set(members)
    assert nx.is_connected(graph)
    assert nx.number_of_selfloops(graph) == 0


@given(member_lists, shapes, st.randoms())
def test_the_order_of_members_does_not_matter(members, shape, rng):
    shuffled = rng.sample(members, len(members))
    assert edges(build(members, shape)) == edges(build(shuffled, shape))


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_alone_has_no_neighbour(kind):
    assert list(build(["d0"], Shape(kind)).edges) == []
    assert len(build([], Shape(kind))) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_two_devices_are_neighbours(kind):
    assert edges(build(["d0", "d1"], Shape(kind, radius=0.001))) == {frozenset(["d0", "d1"])}


@pytest.mark.parametrize("count", [3, 6, 16])
def test_full_and_ring_degrees(count):
    assert degrees(count, kind="full") == {count - 1}
    assert degrees(count, kind="ring") == {2}


@pytest.mark.parametrize(
    ("count", "degree"), [(5, 4), (6, 4), (8, 4), (9, 2), (9, 6), (17, 4), (32, 6), (64, 4)]
)
@pytest.mark.parametrize("seed", range(5))
def test_in_a_regular_graph_all_devices_have_the_same_degree(count, degree, seed):
    assert degrees(count, kind="regular", degree=degree, seed=seed) == {degree}


@pytest.mark.parametrize("seed", range(5))
def test_a_device_that_goes_changes_few_edges_of_a_regular_graph(seed):
    before, after = (edges(build(members, Shape("regular", seed=seed))) for members in (ids(64), ids(64)[1:]))
    assert len(after - before) <= 6 and nx.diameter(build(ids(64), Shape("regular", seed=seed))) <= 6


@pytest.mark.parametrize(
    ("count", "chords", "degree"),
    [
        (6, 0, 2),  # no chords: the ring
        (6, 1, 3),  # one offset, the opposite device: one edge each
        (7, 1, 4),  # an odd ring has no opposite: two edges each
        (8, 2, 5),  # offsets 2 and 4
        (16, 2, 5),  # offsets 4 and 8
        (3, 1, 2),  # too few for chords
    ],
)
def test_ring_with_chords_degree(count, chords, degree):
    assert degrees(count, kind="ring-chords", chords=chords) == {degree}


def test_a_ring_follows_the_numbers_in_the_ids():
    ring = build(["d10", "d2", "d1", "d0"], Shape("ring"))
    assert edges(ring) == {frozenset(e) for e in [("d0", "d1"), ("d1", "d2"), ("d2", "d10"), ("d10", "d0")]}
    assert sorted(["d10", "x", "d2"], key=natural) == ["d2", "d10", "x"]


def test_random_geometric_links_all_within_the_radius():
    shape = Shape("random-geometric", radius=0.4, seed=3)
    at = {d: np.array(position(d, shape.seed)) for d in ids(12)}
    near = {frozenset((a, b)) for a in at for b in at if a < b and np.linalg.norm(at[a] - at[b]) <= 0.4}
    assert near <= edges(build(ids(12), shape))


def test_random_geometric_degrees_lie_between_a_tree_and_all():
    assert degrees(8, kind="random-geometric", radius=2.0) == {7}
    assert build(ids(8), Shape("random-geometric", radius=1e-6)).number_of_edges() == 7


def test_the_seed_alone_decides_where_a_device_is():
    assert position("d3", 1) == position("d3", 1) != position("d3", 2)
    assert position("d3", 1) != position("d4", 1)
    assert all(0 <= x < 1 for d in ids(50) for x in position(d, 0))


def test_a_plugin_adds_a_topology():
    @topology("line")
    def line(members, shape):
        return nx.path_graph(members)

    try:
        assert edges(build(["d1", "d0"], Shape("line"))) == {frozenset(["d0", "d1"])}
    finally:
        del TOPOLOGIES["line"]


def test_rho_of_full_averaging_is_0_and_of_no_mixing_1():
    assert spectral_rho(np.full((5, 5), 1 / 5)) == pytest.approx(0)
    assert spectral_rho(np.eye(5)) == pytest.approx(1)


# -- Metropolis weights (method 5) -----------------------------------------------------------------------


def matrix(graph: nx.Graph, one: int = 1) -> np.ndarray:
    """W by rows; `one` = 0: as the paper prints eq. (6), without the +1."""
    order = sorted(graph)
    w = np.zeros((len(order), len(order)))
    for i, device in enumerate(order):
        for peer, weight in metropolis_row(graph, device).items():
            w[i, order.index(peer)] = weight if one else 1 / (1 / weight - 1)
        w[i, i] = 1 - w[i].sum()
    return w


@given(member_lists, shapes)
def test_metropolis_rows_make_a_doubly_stochastic_matrix_that_contracts(members, shape):
    w = matrix(build(members, shape))
    assert (w >= 0).all() and (np.diag(w) > 0).all()
    np.testing.assert_allclose(w, w.T)
    np.testing.assert_allclose(w.sum(axis=0), 1)
    np.testing.assert_allclose(w.sum(axis=1), 1)
    assert spectral_rho(w) < 1 - 1e-6


BIPARTITE_REGULAR = {
    "K2": nx.complete_graph(2),
    "ring of 4": nx.cycle_graph(4),
    "ring of 6": nx.cycle_graph(6),
    "ring of 16": nx.cycle_graph(16),
    "K3,3": nx.complete_bipartite_graph(3, 3),
    "hypercube": nx.hypercube_graph(3),
}


@pytest.mark.parametrize("graph", BIPARTITE_REGULAR.values(), ids=BIPARTITE_REGULAR)
def test_the_plus_one_contracts_where_the_printed_weights_do_not(graph):
    named = nx.convert_node_labels_to_integers(graph)
    graph = nx.relabel_nodes(named, {i: f"d{i}" for i in named})
    assert spectral_rho(matrix(graph, one=0)) == pytest.approx(1)
    assert spectral_rho(matrix(graph)) < 0.999
