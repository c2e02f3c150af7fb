"""The dual price of a device's budget, which the allocator `priced` compares with the value of a choice.

C_t is a limit of each round and does not carry over. A price can therefore not lend bytes to later rounds. It
holds the mean cost of a round near a target below C_t: it saves in rounds whose choices are worth little, and
spends up to C_t in rounds whose choices are worth more. After each round

    nu <- max(0, nu + kappa (spent / target - 1)),    target = share * C_t

A choice is worth p_g S_u (gain) per cost: p_g is the weight of its group, S_u the probability that the owner
of the block survives (membership/departures.py). `priced` takes it only if it is worth nu times the going
rate, which is a running mean of the value per cost of all that is offered. So nu has no unit, and the same
kappa suits early rounds with large gains and late ones with small gains.

The sum of all updates bounds the mean cost of T rounds: target * (1 + (nu_T - nu_0) / (kappa T)).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coordinator_free.averaging.rate_allocation import Budget, Item, normalised
from coordinator_free.identifiers import BlockKey

MEMORY = 10  # rounds over which the going rate is averaged


def next_price(price: float, spent: float, target: float, step: float) -> float:
    """nu after a round that cost `spent`. `step`: kappa. `target`: above 0, in the unit of `spent`."""
    return max(0.0, price + step * (spent / target - 1))


def value_per_cost(
    items: Iterable[Item],
    budget: Budget,
    weights: Mapping[str, float],
    survival: Mapping[BlockKey, float],
) -> float | None:
    """The value per cost of all items in their largest codec. None if no link can carry any of them.

    `weights`: p_g by group. `survival`: S_u by block; without an entry 1.
    """
    shares, value, cost = normalised(weights), 0.0, 0.0
    for item in items:
        link = budget.links.get(item.peer)
        if item.choices and link is not None and link.cap_bytes > 0:
            largest = item.choices[-1]
            alive = survival.get(item.part.block, 1.0)
            value += shares.get(item.part.group, 0.0) * alive * largest.gain
            cost += largest.bytes * link.price
    return value / cost if cost else None


class DualPrice:
    """The price of one device and the going rate, carried over rounds.

    `step`: kappa. `share`: of C_t, above 0 and at most 1. `budget`: C_t in bytes.
    """

    def __init__(self, step: float, share: float, budget: float) -> None:
        self._step, self.share, self._target = step, share, share * budget
        self.value = 0.0
        self._rate: float | None = None

    def floor(self, offered: float | None) -> float:
        """The least value per cost that a choice must have in this round: nu times the going rate.

        `offered`: the value per cost of all that is offered in this round; None: nothing is.
        """
        if offered is not None:
            before = offered if self._rate is None else self._rate
            self._rate = before + (offered - before) / MEMORY
        return self.value * (self._rate or 0.0)

    def settle(self, spent: float) -> None:
        """A round has cost `spent`: move the price."""
        self.value = next_price(self.value, spent, self._target, self._step)
