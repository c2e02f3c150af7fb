"""Mode `average` with `mixing.tolerance` above 0: a foreign copy is sent if the receiver's estimate is off.

A receiver keeps the last copy of each part from each neighbour. Between sends, both ends move the kept copy
as its holder moves it: towards the owner's copy of the round, by the holder's mixing weight of the owner. So
a holder knows what a neighbour assumes of its copy. Event-triggered communication: Dimarogonas, Frazzoli
and Johansson (2012); a shared estimate of each sender: CHOCO-Gossip (Koloskova, Stich and Jaggi, 2019).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from coordinator_free.averaging.mixing import MODES, Arrival, Follow, Mix
from coordinator_free.averaging.rate_allocation import Transfer
from coordinator_free.averaging.topology import Graph
from coordinator_free.identifiers import BlockKey, Part
from peers.config import DeviceConfig
from peers.radio_config import FIFO

REFRESH = 20  # rounds after which a copy is sent in any case: what a lost message has made wrong ends then
COARSE_ERROR = 0.02  # int8 errs by about 1 % of the norm of a matrix
Near = Mapping[Transfer, bool]  # whether the peer's assumption of the own copy is within the tolerance


def applies(config: DeviceConfig) -> bool:
    """Whether a run sends foreign copies only if the receivers' estimates are off.

    An allocator weighs each copy by its gain and spends the whole budget, so it may choose among all copies.
    """
    mode, offers_all = MODES[config.mixing.mode](), config.radio.allocator != FIFO
    return config.mixing.tolerance > 0 and mode.relays and not mode.shared_versions and not offers_all


def foreign_codec(config: DeviceConfig) -> str | None:
    """The codec of foreign copies; None: that of the scenario, since the error of int8 would be too large."""
    fits = applies(config) and config.mixing.tolerance >= COARSE_ERROR
    return "int8" if fits and config.radio.codec in ("fp32", "fp16", "bf16") else None


class Layer(NamedTuple):
    """The learning graph of a group in a round, gamma, and whether the group is exchanged in this round."""

    graph: Graph[str]
    gamma: float
    due: bool = True

    def share(self, device: str, owner: str) -> float:
        """gamma w_ij: how far a device moves towards a neighbour's copy; 0 if they are not neighbours."""
        degree = self.graph.degree
        linked = device in self.graph and owner in self.graph[device]
        return self.gamma / (1 + max(degree[device], degree[owner])) if linked else 0.0


def is_refreshed(part: Part, version: int) -> bool:
    """Whether a part is sent in this round in any case. Parts have different turns."""
    turn = zlib.crc32(f"{part.block} {part.group}".encode())
    return (version + turn) % REFRESH == 0


class Following:
    """Says how kept copies move at the end of a round.

    `kept`: the last copy of a part from a peer, if any. `reached`: the share by which a neighbour moves
    towards the own part that this device sent it in this round; None: as it mixes; 0: it was not sent.
    """

    def __init__(
        self,
        own: BlockKey,
        layers: Mapping[str, Layer],
        kept: Callable[[str, Part], Arrival | None],
        reached: Callable[[str, Part], float | None],
    ) -> None:
        self._own, self._me, self._layers = own, own.device, layers
        self._kept, self._reached = kept, reached

    def add_to(self, mix: Mix, arrived: Mapping[str, Mapping[Part, Arrival]]) -> Mix:
        """The mixing operation with the moves of the kept copies of its part."""
        part, layer = mix.part, self._layers[mix.part.group]
        owner = part.block.device
        if self._me not in layer.graph:
            return mix
        if part.block == self._own:
            moves = {peer: self._moved(peer, part, layer) for peer in sorted(layer.graph[self._me])}
            return mix._replace(follow=Follow(None, self._of_kept(part, moves), 0.0, ()))
        copy = arrived.get(owner, {}).get(part) if owner in layer.graph[self._me] else None
        if copy is None or copy.values is None:
            return mix
        near = [p for p in sorted(layer.graph[self._me]) if p == owner or owner in layer.graph[p]]
        shares = {p: 1.0 if copy.replaces else layer.share(p, owner) for p in near if p != owner}
        mine = 1.0 if copy.replaces else layer.share(self._me, owner)
        return mix._replace(follow=Follow(copy.values, self._of_kept(part, shares), mine, tuple(near)))

    def missed(self, held: Iterable[Part], arrived: Mapping[str, Mapping[Part, Arrival]]) -> list[Part]:
        """The parts whose owner is a neighbour but whose copy of this round is not here. The other neighbours
        may have it. They then move their estimates, and the own copy does not move."""
        return [
            part
            for part in held
            if part.block != self._own and self._is_missed(part, arrived.get(part.block.device, {}))
        ]

    def _is_missed(self, part: Part, of_owner: Mapping[Part, Arrival]) -> bool:
        layer, owner = self._layers[part.group], part.block.device
        linked = self._me in layer.graph and owner in layer.graph[self._me]
        return layer.due and linked and part not in of_owner

    def _moved(self, peer: str, part: Part, layer: Layer) -> float:
        share = self._reached(peer, part)
        return layer.share(peer, self._me) if share is None else share

    def _of_kept(self, part: Part, shares: Mapping[str, float]) -> tuple[tuple[float, object], ...]:
        copies = ((share, self._kept(peer, part)) for peer, share in shares.items() if share)
        return tuple((share, copy.values) for share, copy in copies if copy and copy.values is not None)
