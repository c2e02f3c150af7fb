"""The simulated network with an allocator, real codecs and the neighbours' copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from coordinator_free.averaging.rate_allocation import Budget, Link
from coordinator_free.identifiers import BlockKey, Part
from coordinator_free.seeded_random import blake2b_128, generator
from peers.learning.neighbour_copies import NeighbourCopies
from peers.protocol import actions as do
from peers.protocol.send_allocation import Supply
from tests.support.simulated import GROUPS, WIDTH, Network, SimDevice, Values, _take, small_config
from transport.wire.codec_names import payload_bytes
from transport.wire.messages import Update
from transport.wire.tensor_codec import decode, encode

SIZES = {"fp16": 100, "int8": 52, "int4": 28}  # bytes of the budget that a part costs


def as_matrix(values: Values) -> Tensor:
    return torch.from_numpy(values).float().view(WIDTH, 1)


class AllocatingNetwork(Network):
    """`caps`: bytes that a link carries in a round, by (source, peer); without an entry: no bound."""

    def __init__(self, allocator: str = "residual", **sections: Any) -> None:
        radio = {"allocator": allocator, **sections.pop("radio", {})}
        super().__init__(small_config(radio=radio, **sections))
        self.copies: dict[str, NeighbourCopies] = {}
        self.caps: dict[tuple[str, str], float] = {}
        self.spent: Counter[tuple[str, int]] = Counter()  # by device and round
        self.codecs: Counter[str] = Counter()  # of admitted updates

    def add(self, device: str, *seeds: str, **more: Any) -> SimDevice:
        self.copies[device] = NeighbourCopies()
        return super().add(device, *seeds, **more)

    def _perform(self, device: SimDevice, actions: list[do.Action]) -> None:
        for action in actions:
            if isinstance(action, do.DropBlock):
                self.copies[device.name].drop_block(action.key)
            elif isinstance(action, do.Disconnect):
                self.copies[device.name].forget_neighbour(action.peer)
            super()._perform(device, [action])

    def _trained(self, device: SimDevice, action: do.Train) -> None:
        def event(now: int) -> list[do.Action]:
            changed = device.train(action)
            mine = {part: as_matrix(values) for part, values in device.values.items()}
            links = {peer: Link(self.caps.get((device.name, peer), 1e9)) for peer in device.links}
            budget = Budget(device.budget_bytes, links)
            distances = self.copies[device.name].distances(mine)
            supply = Supply(budget, dict.fromkeys(GROUPS, SIZES), distances)
            return device.protocol.trained(now, changed, 0, supply)

        self._handle(device, event)

    def _publish(self, source: SimDevice, action: do.Publish) -> None:
        for part, version, cause in action.parts:
            codec = action.codecs[part]
            self.spent[source.name, action.round] += SIZES[codec]
            draw = generator(repr((source.name, part, version, codec)), digest=blake2b_128)
            sent = decode(encode(as_matrix(source.values[part]), codec, draw), codec, WIDTH, 1)
            self.copies[source.name].store_copy(action.peer, part, sent)
            header = Update(
                *(part.block.device, part.block.incarnation, part.group, version, action.round, cause),
                *(codec, WIDTH, 1, 0, payload_bytes(codec, WIDTH, 1)),
            )
            self._carry(source, action.peer, header, True, self._taking(source.name, header, sent))
        self.send(source, action.peer, action.manifest, data=True)

    def _taking(self, source: str, header: Update, sent: Tensor) -> Callable[[SimDevice, int], list[Any]]:
        def take(device: SimDevice, now: int) -> list[do.Action]:
            part = Part(BlockKey(header.block, header.block_incarnation), header.group)
            if device.protocol.admit(source, header) is None:
                self.copies[device.name].store_copy(source, part, sent)
                self.codecs[header.codec] += 1
            values = sent.flatten().double().numpy()
            return partial(_take, source, header, values)(device, now)

        return take
