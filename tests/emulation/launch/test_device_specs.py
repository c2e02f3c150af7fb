"""The seeds of devices that start together: all are connected, and nobody has to greet all others."""

from __future__ import annotations

from collections import Counter

import networkx as nx
import pytest

from emulation.launch.device_specs import SEEDS, seeds


@pytest.mark.parametrize("count", [9, 10, 17, 64, 200])
def test_seeds_connect_all_devices_and_each_is_a_seed_of_few(count: int) -> None:
    names = [f"d{i}" for i in range(count)]
    calls = {name: seeds(names, name, [other for other in names if other != name]) for name in names}
    assert all(name not in called and len({*called}) == len(called) for name, called in calls.items())
    assert max(Counter(one for called in calls.values() for one in called).values()) <= SEEDS
    graph = nx.Graph([(name, one) for name, called in calls.items() for one in called])
    assert set(graph) == {*names} and nx.is_connected(graph)
    assert nx.diameter(graph) <= 4


def test_few_known_devices_are_all_seeds() -> None:
    known = [f"d{i}" for i in range(SEEDS)]
    assert seeds([], "d9", known) == known


def test_a_device_that_comes_later_calls_those_that_came_last() -> None:
    names = [f"d{i}" for i in range(20)]
    assert seeds(names, "d20", names) == ["d19", "d18", "d16", "d12", "d4", "d8"]
