"""Networks that are under way, and what tests ask of them."""

from __future__ import annotations

from typing import Any

from coordinator_free.membership import Key
from tests.peers.simulated import Network, small_config, still


def started(size: int = 4, mode: str = "average", **sections: Any) -> Network:
    """A cohort three rounds on."""
    net = Network(small_config(mixing={"mode": mode}, **sections))
    net.cohort(size)
    net.rounds(3)
    return net


def rest(net: Network) -> None:
    """Nothing moves any more and all copies agree."""
    for device in net:
        device.move = still
    net.rounds(60 if net.config.topology.kind == "ring" else 4)


def agreed(net: Network) -> bool:
    """The living agree on members, blocks and slots."""
    tables = [device.table() for device in net]
    return all(table == tables[0] for table in tables)


def has_gone(net: Network, key: Key) -> bool:
    return not any(key in device.slots for device in net)


def trains(net: Network, device: str) -> bool:
    return net[device].round >= 0
