"""The shard of each device: its own examples, or its part of the pool of all devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from peers.config import DataConfig
from peers.errors import InputError
from peers.tasks.base import Example
from peers.tasks.partition import deal, split_held_out

OWN = "own"


class Shards:
    """Applies `data.partition`, `data.held_out` and `data.sizes` to the examples that a task reads.

    own: the examples of one device before the partition. A call of `own` is cheap or cached.
    """

    def __init__(self, config: DataConfig, seed: int, own: Callable[[str], list[Example]]) -> None:
        if config.devices and config.partition == OWN:
            raise InputError(
                f"data.devices: {', '.join(config.devices)} with data.partition 'own'; allowed: with 'iid', "
                "'by-label' or 'dirichlet:ALPHA'"
            )
        self._config, self._seed, self._own = config, seed, own

    def train(self, shard: str, devices: Sequence[str]) -> list[Example]:
        """The training examples of a device. devices: among which a pool is dealt.

        Raises InputError for a device that is not among them, and if the device gets no example, unless
        data.empty = "listen".
        """
        config = self._config
        if config.partition == OWN:
            found = self._split(shard)[0]
        elif shard not in devices:
            raise InputError(
                f"device {shard!r}: data.partition {config.partition!r} deals the examples to "
                f"{', '.join(devices) or 'nobody'}; allowed: devices of the scenario, or of data.devices"
            )
        else:
            pool = self._pool(devices)[0]
            found = deal(pool, sorted(devices), config.partition, self._seed)[shard]
        found = found[: config.sizes.get(shard, len(found))]
        if not found and config.empty == "error":
            raise InputError(
                f"data: {shard} has no examples; allowed: one or more for each device, "
                "or data.empty = 'listen'"
            )
        return found

    def held_out(self, devices: Sequence[str]) -> list[Example]:
        """The examples of the devices that nobody trains."""
        if not self._config.held_out:
            return []
        if self._config.partition == OWN:
            return [example for device in devices for example in self._split(device)[1]]
        return self._pool(devices)[1]

    def _split(self, device: str) -> tuple[list[Example], list[Example]]:
        return split_held_out(self._own(device), self._config.held_out, self._seed, device)

    def _pool(self, devices: Sequence[str]) -> tuple[list[Example], list[Example]]:
        pool = [example for device in sorted(devices) for example in self._own(device)]
        return split_held_out(pool, self._config.held_out, self._seed)
