"""What a device sends in a round where `radio.allocator` names one: which matrices, to whom, in which codec.

averaging/rate_allocation.py decides. Here its questions are put together from what neighbours
lack (exchange.py), how far their copies are from the own ones (copies.py), what groups weigh (correction.py)
and what links carry (outbox.py), and what waits is kept from round to round. Sans-I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from coordinator_free.averaging.rate_allocation import (
    Budget,
    Choice,
    Item,
    Transfer,
    Waiting,
    Weights,
    allocate,
    choices,
)
from coordinator_free.identifiers import BlockKey
from peers.config import FIFO, RadioConfig
from peers.learning.neighbour_copies import Distances

LEAST_GAIN = 1e-30  # of what was asked for though it gains nothing


def codecs(radio: RadioConfig) -> tuple[str, ...]:
    """All that data may come in."""
    return (radio.codec,) if radio.allocator == FIFO else radio.codecs


@dataclass(frozen=True, slots=True)
class Supply:
    """What a round has to give. sizes: bytes of a matrix on the wire at most, by group and codec."""

    budget: Budget
    sizes: Mapping[str, Mapping[str, int]]
    distances: Distances


class Allocating:
    """The allocator `name`, and what it leaves to the next round. `seed`: of the run and the device."""

    def __init__(self, name: str, *seed: object) -> None:
        self._name, self._seed = name, seed
        self.waiting = Waiting()

    def choose(
        self,
        wanted: Iterable[Transfer],
        asked: Collection[Transfer],
        round_: int,
        supply: Supply,
        weights: Weights,
    ) -> dict[Transfer, str]:
        """The codec of each of the `wanted` that is sent; `asked`: those that a neighbour has asked for."""
        items = [_item(slot, slot in asked, supply) for slot in wanted]
        made = allocate(self._name, items, supply.budget, weights, self.waiting, self._draw(round_))
        self._keep(made.waiting, items)
        return {slot: choice.codec for slot, choice in made.chosen.items()}

    def _keep(self, left: Waiting, items: Iterable[Item]) -> None:
        """What is not this round's turn (a group's period) waits on, and its group keeps its deficit."""
        here = {item.transfer for item in items}
        groups = {part.group for _, part in here}
        rounds = {slot: n for slot, n in self.waiting.rounds.items() if slot not in here}
        deficits = {group: d for group, d in self.waiting.deficits.items() if group not in groups}
        self.waiting = Waiting({**rounds, **left.rounds}, {**deficits, **left.deficits})

    def drop(self, key: BlockKey) -> None:
        """Deletion: nothing waits of the block."""
        self._wait(lambda slot: slot[1].block != key)

    def forget_peer(self, peer: str) -> None:
        self._wait(lambda slot: slot[0] != peer)

    def _wait(self, stays: Callable[[Transfer], bool]) -> None:
        rounds = {slot: n for slot, n in self.waiting.rounds.items() if stays(slot)}
        self.waiting = Waiting(rounds, self.waiting.deficits)

    def _draw(self, round_: int) -> int:
        digest = hashlib.blake2b(repr((*self._seed, round_)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")


def _item(slot: Transfer, asked: bool, supply: Supply) -> Item:
    """Without choices where nothing is known of the matrix yet, or sending it would gain nothing."""
    peer, part = slot
    matrix, sizes = supply.distances.matrices.get(part), supply.sizes[part.group]
    if matrix is None:
        return Item(peer, part, ())
    if asked:  # the neighbour has none, whatever it was sent: it may have been lost
        points = choices(matrix.norm2, *matrix, sizes)
        least = min(sizes, key=lambda codec: (sizes[codec], codec))
        return Item(peer, part, points or (Choice(least, sizes[least], LEAST_GAIN),))
    apart2 = supply.distances.apart2.get(slot, matrix.norm2)
    return Item(peer, part, choices(apart2, *matrix, sizes))
