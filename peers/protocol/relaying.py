"""Which device relays a block to which neighbour in mode `newest`.

All devices know the learning graph. The owner sends its block to its neighbours. Every other device has one
relay: a neighbour that is one hop nearer to the owner. Other neighbours relay only if the device lags behind
what its distance from the owner explains: its relay or a message was lost. Without loss every version arrives
in the same round as if all neighbours relayed it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import networkx as nx

from coordinator_free.averaging.topology import Graph
from coordinator_free.identifiers import Part

LeastLag = Callable[[str, Part], int]  # the lag in versions of a peer from which on a part is sent to it


class Relays:
    """The duties of the device `me` in one round. `graphs`: by layer group. `periods`: H_g by group."""

    def __init__(self, graphs: Mapping[str, Graph[str]], periods: Mapping[str, int], me: str) -> None:
        self._graphs, self._periods, self._me = graphs, periods, me
        self._distances: dict[tuple[str, str], Mapping[str, int]] = {}  # from an owner, in a group's graph

    def least_lag(self, peer: str, part: Part) -> int:
        """The number of versions that `peer` must be behind, so that this device relays `part` to it."""
        graph, owner = self._graphs[part.group], part.block.device
        if owner == self._me or not all(name in graph for name in (owner, peer, self._me)):
            return 1
        if owner in graph[peer]:  # most cases need no distances
            return 2 if owner in graph[self._me] else 1
        hops = self._hops(part.group, owner)
        if peer not in hops or self._me not in hops or _relay(graph, hops, owner, peer) == self._me:
            return 1
        return max(1, 2 + (hops[peer] - hops[self._me]) * self._periods[part.group])

    def _hops(self, group: str, owner: str) -> Mapping[str, int]:
        key = group, owner
        if key not in self._distances:
            self._distances[key] = nx.single_source_shortest_path_length(self._graphs[group], owner)
        return self._distances[key]


def _relay(graph: Graph[str], hops: Mapping[str, int], owner: str, peer: str) -> str:
    """The relay of a device that is at least two hops from the owner. Owners differ, so relays share work."""
    nearer = sorted(name for name in graph[peer] if hops[name] == hops[peer] - 1)
    return nearer[zlib.crc32(f"{owner} {peer}".encode()) % len(nearer)]
