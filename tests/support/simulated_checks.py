"""Networks that are under way, and what tests ask of them."""

from __future__ import annotations

from typing import Any

from coordinator_free.identifiers import BlockKey
from tests.support.simulated import SECOND, Network, SimDevice, small_config, still


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


def has_gone(net: Network, key: BlockKey) -> bool:
    return not any(key in device.slots for device in net)


def trains(net: Network, device: str) -> bool:
    return net[device].round >= 0


class Toll:
    """A network and what has happened to its devices."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.left: set[BlockKey] = set()
        self.ended_ns: dict[str, int] = {}

    def absent(self) -> list[str]:
        """Who may return. A process takes seconds to start: what its earlier life sent has come by then."""
        return [
            d for d, at in self.ended_ns.items() if not self.net[d].live and self.net.now - at > 2 * SECOND
        ]

    def strike(self, kind: str, device: SimDevice, stall_s: float) -> None:
        """Stall, crash, leave or retire."""
        if kind == "stall":
            self.net.stall(device.name, stall_s)
            return
        self.ended_ns[device.name] = self.net.now
        own = device.protocol.own
        if kind == "crash":
            self.net.crash(device.name)
        elif self.net.now >= device.stalled_until:
            self.left |= {own.key} if kind == "leave" and own is not None else set()
            self.net.signal(device.name, kind)
