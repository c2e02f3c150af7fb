"""Relays in `newest`: every version arrives as soon as with flooding, over far fewer transfers."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from coordinator_free.identifiers import BlockKey, Part
from peers.protocol import actions as do
from peers.protocol.relaying import Relays
from tests.support.simulated import GROUPS, Network, small_config
from transport.wire.messages import Update

EARLY = Part(BlockKey("d0", 0), "early")


def relays(graph: nx.Graph[str], me: str, period: int = 1) -> Relays:
    return Relays({"early": graph}, {"early": period}, me)


def newest(kind: str, size: int, rounds: int) -> Network:
    net = Network(small_config(mixing={"mode": "newest"}, topology={"kind": kind}))
    net.cohort(size)
    net.rounds(rounds)
    return net


def transfers(net: Network, first: int = 3, last: int = 6) -> int:
    """Matrices that were sent in some rounds after the start."""
    sent = [action for device in net for action in device.done(do.Publish)]
    return sum(len(action.parts) for action in sent if first <= action.round < last)


def test_the_owner_always_sends_and_a_fellow_neighbour_only_helps_one_that_lags() -> None:
    full: nx.Graph[str] = nx.complete_graph(["d0", "d1", "d2"])
    assert relays(full, "d0").least_lag("d1", EARLY) == 1
    assert relays(full, "d1").least_lag("d2", EARLY) == 2


def test_exactly_one_of_two_nearer_neighbours_is_the_relay() -> None:
    square: nx.Graph[str] = nx.Graph([("d0", "d1"), ("d0", "d3"), ("d1", "d2"), ("d3", "d2")])
    assert sorted(relays(square, me).least_lag("d2", EARLY) for me in ("d1", "d3")) == [1, 3]
    assert sorted(relays(square, me, period=4).least_lag("d2", EARLY) for me in ("d1", "d3")) == [1, 6]


def test_a_device_outside_the_graph_is_sent_everything() -> None:
    assert relays(nx.complete_graph(["d0", "d1"]), "d1").least_lag("d9", EARLY) == 1


@pytest.mark.parametrize("kind", ["full", "ring-chords"])
def test_all_copies_are_those_of_flooding_for_one_transfer_a_version_and_receiver(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = newest(kind, 6, 7)
    monkeypatch.setattr(Relays, "least_lag", lambda self, peer, part: 1)
    flooded = newest(kind, 6, 7)
    for a, b in zip(net, flooded, strict=True):
        assert a.round == b.round
        assert all(np.array_equal(a.values[part], b.values[part]) for part in b.values)
    fewest = 6 * 5 * len(GROUPS)  # in a round each of 6 devices needs the 5 other blocks
    assert transfers(net) == 3 * fewest < 0.6 * transfers(flooded)


def test_a_version_that_its_sender_lost_arrives_through_another_neighbour() -> None:
    net = newest("full", 3, 2)
    net.loses = lambda source, target, message: (
        isinstance(message, Update) and (message.block, source, target) == ("d0", "d0", "d1")
    )
    net.rounds(5)
    now = net["d0"].protocol.round
    held = net["d1"].protocol._state.exchange.held
    assert all(now - held[Part(BlockKey("d0", 0), group)] <= 4 for group in GROUPS)
