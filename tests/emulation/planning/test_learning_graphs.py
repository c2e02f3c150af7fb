"""The figures of learning graphs: exact for small ones, limits for large ones."""

from __future__ import annotations

import math

import networkx as nx
import pytest

from coordinator_free.averaging.topology import spectral_rho
from emulation.planning import learning_graphs
from emulation.planning.learning_graphs import figures


def test_a_complete_graph_mixes_in_one_round_and_sends_no_foreign_copies() -> None:
    found = figures(5, 4)
    assert found.links == 4 and found.rho == pytest.approx(0.0, abs=1e-9) and found.copies == 0


def test_a_ring_has_its_known_gap() -> None:
    found = figures(12, 2)
    assert found.rho == pytest.approx((1 + 2 * math.cos(2 * math.pi / 12)) / 3)
    assert found.copies == 2 * 11


@pytest.mark.parametrize("degree", [2, 4, 6])
def test_the_limits_continue_the_graphs_that_are_built(degree: int, monkeypatch: pytest.MonkeyPatch) -> None:
    built = figures(200, degree)
    monkeypatch.setattr(learning_graphs, "MOST_BUILT", 100)
    figures.cache_clear()
    limit = figures(200, degree)
    figures.cache_clear()
    assert built.built and not limit.built
    assert limit.rho == pytest.approx(built.rho, abs=0.03) and limit.links == pytest.approx(
        built.links, abs=0.05
    )


def test_rho_is_that_of_the_mixing_matrix() -> None:
    """The same as method 5 defines it, also on a graph whose degrees differ."""
    graph = nx.path_graph(5)
    weights = learning_graphs._weights(nx.relabel_nodes(graph, {n: f"d{n}" for n in graph}))
    assert learning_graphs._rho(weights) == pytest.approx(spectral_rho(weights))


@pytest.mark.parametrize("degree", [400, 1000])
def test_a_large_graph_has_no_more_links_than_devices(degree: int) -> None:
    found = figures(401, degree)
    assert (found.links, found.rho, found.copies) == (400, 0.0, 0.0)
