"""The dual price of a device's budget, which the allocator `priced` compares with the value of a choice.

C_t is a limit of each round and does not carry over. A price can therefore not lend bytes to later rounds. It
holds the mean cost of a round near a target below C_t: it saves in rounds whose choices are worth little, and
spends up to C_t in rounds whose choices are worth more. After each round

    nu <- max(0, nu + kappa (spent / target - 1)),    target = share * C_t

A choice is worth p_g S_u (gain) per cost: p_g is the weight of its group, S_u the probability that the owner
of the block survives (membership/departures.py). `priced` takes it only if it is worth nu times the going
rate. That is a running mean over rounds of the value per cost at which the target would be spent. So nu has
no unit and is near 1 if all rounds are alike, and the same kappa suits early rounds with large gains and late
ones with small gains.

The sum of all updates bounds the mean cost of T rounds: target * (1 + (nu_T - nu_0) / (kappa T)).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coordinator_free.averaging.rate_allocation import Budget, BudgetLedger, Item, normalised, steps
from coordinator_free.identifiers import BlockKey

MEMORY = 10  # rounds over which the going rate is averaged


def next_price(price: float, spent: float, target: float, step: float) -> float:
    """nu after a round that cost `spent`. `step`: kappa. `target`: above 0, in the unit of `spent`."""
    return max(0.0, price + step * (spent / target - 1))


def marginal_value(
    items: Iterable[Item],
    budget: Budget,
    weights: Mapping[str, float],
    survival: Mapping[BlockKey, float],
    target: float,
) -> float | None:
    """The value per cost of the step with which the cost of the best steps reaches `target`.

    It is that of the last step if all steps together cost less. None if no link can carry any step. As in
    `priced`, blocks whose owners are gone have no steps.
    `weights`: p_g by group. `survival`: S_u by block; without an entry 1.
    """
    up = {peer for peer, link in budget.links.items() if link.cap_bytes > 0}
    offered = [item for item in items if item.peer in up and survival.get(item.part.block, 1.0) > 0]
    value, cost = None, 0.0
    for step in steps(offered, BudgetLedger(budget), normalised(weights), survival):
        value, cost = step.value, cost + step.cost
        if cost >= target:
            break
    return value


class DualPrice:
    """The price of one device and the going rate, carried over rounds.

    `step`: kappa. `share`: of C_t, above 0 and at most 1. `budget`: C_t in bytes.
    """

    def __init__(self, step: float, share: float, budget: float) -> None:
        self._step, self.share, self.target = step, share, share * budget
        self.value = 0.0
        self._rate: float | None = None

    def floor(self, offered: float | None) -> float:
        """The least value per cost that a choice must have in this round: nu times the going rate.

        `offered`: the marginal value at the target in this round; None: nothing is offered.
        """
        if offered is not None:
            before = offered if self._rate is None else self._rate
            self._rate = before + (offered - before) / MEMORY
        return self.value * (self._rate or 0.0)

    def settle(self, spent: float) -> None:
        """A round has cost `spent`: move the price."""
        self.value = next_price(self.value, spent, self.target, self._step)
