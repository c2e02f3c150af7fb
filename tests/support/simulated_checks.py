"""Networks that train already, and checks of their state."""

from __future__ import annotations

from typing import Any

from coordinator_free.identifiers import BlockKey
from tests.support.simulated import SECOND, Network, SimDevice, small_config, still


def started(size: int = 4, mode: str = "average", **sections: Any) -> Network:
    """A cohort that has closed three rounds."""
    net = Network(small_config(mixing={"mode": mode}, **sections))
    net.cohort(size)
    net.rounds(3)
    return net


def rest(net: Network) -> None:
    """Run without local changes until all copies agree."""
    for device in net:
        device.move = still
    net.rounds(60 if net.config.topology.kind == "ring" else 4)


def agreed(net: Network) -> bool:
    """Whether live devices agree on members, blocks and slots."""
    tables = [device.table() for device in net]
    return all(table == tables[0] for table in tables)


def has_gone(net: Network, key: BlockKey) -> bool:
    return not any(key in device.slots for device in net)


def trains(net: Network, device: str) -> bool:
    return net[device].round >= 0


class Churn:
    """A network, and a record of the devices that have left or ended."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.left: set[BlockKey] = set()
        self.ended_ns: dict[str, int] = {}

    def absent(self) -> list[str]:
        """The devices that may return: 2 s after their end, since a process takes seconds to start."""
        return [
            d for d, at in self.ended_ns.items() if not self.net[d].live and self.net.now - at > 2 * SECOND
        ]

    def strike(self, kind: str, device: SimDevice, stall_s: float) -> None:
        """Make a device stall, crash, leave or retire."""
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
