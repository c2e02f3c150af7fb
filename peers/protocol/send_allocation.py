"""The allocation of a round's budget, where `radio.allocator` names an allocator.

It decides which part goes to which neighbour in which codec. averaging/rate_allocation.py solves the problem.
This module builds the problem from four inputs: the parts that neighbours lack (exchange.py), the distances
between copies (learning/neighbour_copies.py), the weights of the groups (correction.py) and the capacity of
the links (runtime/sender.py). It keeps the waiting times from round to round, and the price of `priced`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from coordinator_free.averaging.copy_distances import Distances
from coordinator_free.averaging.pricing import DualPrice, marginal_value
from coordinator_free.averaging.rate_allocation import (
    Budget,
    Choice,
    Item,
    Terms,
    Transfer,
    Waiting,
    Weights,
    allocate,
    choices,
)
from coordinator_free.identifiers import BlockKey
from peers.radio_config import FIFO, PRICED, RadioConfig

LEAST_GAIN = 1e-30  # of a requested part that lowers no distance


def codecs(radio: RadioConfig) -> tuple[str, ...]:
    """All codecs in which data may be sent."""
    return (radio.codec,) if radio.allocator == FIFO else radio.codecs


@dataclass(frozen=True, slots=True)
class Supply:
    """The resources of a round."""

    budget: Budget
    sizes: Mapping[str, Mapping[str, int]]  # largest wire size of a matrix in bytes, by group and codec
    distances: Distances


def send_allocation(radio: RadioConfig, *seed: object) -> SendAllocation | None:
    """The allocation of a scenario; None with `fifo`. `seed`: of the run and the device."""
    if radio.allocator == FIFO:
        return None
    terms = radio.pricing
    priced = radio.allocator == PRICED
    price = DualPrice(terms.step, terms.target, radio.budget_bytes) if priced else None
    return SendAllocation(radio.allocator, *seed, price=price)


class SendAllocation:
    """The allocator `name` and the items that it left to later rounds. `seed`: of the run and the device.

    `price`: of the budget, for `priced` alone.
    """

    def __init__(self, name: str, *seed: object, price: DualPrice | None = None) -> None:
        self._name, self._seed, self.price = name, seed, price
        self.waiting = Waiting()

    def choose(
        self,
        wanted: Iterable[Transfer],
        asked: Collection[Transfer],
        round_: int,
        supply: Supply,
        weights: Weights,
        survival: Mapping[BlockKey, float] = MappingProxyType({}),
    ) -> dict[Transfer, str]:
        """The codec of each transfer in `wanted` that is granted. `asked`: requested by the neighbour.

        `survival`: S_u by block, for a price. A price moves with each call, so there is one call a round.
        """
        items = [_item(transfer, transfer in asked, supply) for transfer in wanted]
        terms = self._terms(items, supply.budget, weights, survival)
        made = allocate(self._name, items, supply.budget, weights, self.waiting, self._draw(round_), terms)
        if self.price is not None:
            self.price.settle(made.cost)
        self._merge_waiting(made.waiting, items)
        return {transfer: choice.codec for transfer, choice in made.chosen.items()}

    def _terms(
        self, items: Iterable[Item], budget: Budget, weights: Weights, survival: Mapping[BlockKey, float]
    ) -> Terms:
        if self.price is None:
            return Terms()
        offered = marginal_value(items, budget, weights.residual, survival, self.price.target)
        return Terms(self.price.floor(offered), self.price.share, survival)

    def _merge_waiting(self, left: Waiting, items: Iterable[Item]) -> None:
        """Keep the waiting times and deficits of groups that were not exchanged in this round."""
        here = {item.transfer for item in items}
        groups = {part.group for _, part in here}
        rounds = {transfer: n for transfer, n in self.waiting.rounds.items() if transfer not in here}
        deficits = {group: d for group, d in self.waiting.deficits.items() if group not in groups}
        self.waiting = Waiting({**rounds, **left.rounds}, {**deficits, **left.deficits})

    def drop_block(self, key: BlockKey) -> None:
        """Forget the waiting times of a deleted block."""
        self._keep_waiting(lambda transfer: transfer[1].block != key)

    def forget_peer(self, peer: str) -> None:
        """Forget the waiting times of a peer."""
        self._keep_waiting(lambda transfer: transfer[0] != peer)

    def _keep_waiting(self, stays: Callable[[Transfer], bool]) -> None:
        rounds = {transfer: n for transfer, n in self.waiting.rounds.items() if stays(transfer)}
        self.waiting = Waiting(rounds, self.waiting.deficits)

    def _draw(self, round_: int) -> int:
        digest = hashlib.blake2b(repr((*self._seed, round_)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")


def _item(transfer: Transfer, asked: bool, supply: Supply) -> Item:
    """The choices for one transfer; none if the matrix is not measured yet or a send would gain nothing."""
    peer, part = transfer
    matrix, sizes = supply.distances.matrices.get(part), supply.sizes[part.group]
    if matrix is None:
        return Item(peer, part, ())
    if asked:  # earlier sends may have been lost: the neighbour holds B = 0
        points = choices(matrix.norm2, *matrix, sizes)
        least = min(sizes, key=lambda codec: (sizes[codec], codec))
        return Item(peer, part, points or (Choice(least, sizes[least], LEAST_GAIN),))
    apart2 = supply.distances.apart2.get(transfer, matrix.norm2)
    return Item(peer, part, choices(apart2, *matrix, sizes))
