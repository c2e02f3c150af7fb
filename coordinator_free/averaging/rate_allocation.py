"""What a device sends this round within its budget (method 8, eq. 7-8 and 12).

For every (neighbour, group, block) that a neighbour lacks: nothing, or the block in one of some codecs.
Maximised is the weighted sum of gains, under sum c <= C_t with c = b + beta b / R, and sum b / R <= tau_max
on every link. Each item's choices are reduced to their convex hull, and steps along the hulls are taken in
order of gain per cost. As the constraints nest (links within the budget) that order is optimal for the
relaxed problem but for one step at each constraint that binds: so close is the result to the optimum.

What does not fit waits. A reserved share of the budget is spent on what waits, by deficit round-robin over
the groups in proportion to p_g: everything is sent at last, and how often is each group's H_g.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from coordinator_free.identifiers import Part

Transfer = tuple[str, Part]  # neighbour, part: what is chosen for
LEAST_SHARE = 0.05  # of p_g in the reserve: a group without priority is sent at last too
LEVELS = {"int8": 127, "int4": 7}
FLOAT_ERROR = {"fp32": 0.0, "fp16": 2.0**-24, "bf16": 2.0**-18}  # of the norm squared


class Choice(NamedTuple):
    """One way to send an item. gain: by how much it lowers ||B_mine - B_theirs||^2."""

    codec: str
    bytes: int
    gain: float


@dataclass(frozen=True, slots=True)
class Item:
    """A part that a neighbour lacks. choices: in ascending order of bytes, the smallest 1 byte or more."""

    peer: str
    part: Part
    choices: tuple[Choice, ...]

    @property
    def transfer(self) -> Transfer:
        return self.peer, self.part


class Link(NamedTuple):
    """To one neighbour. cap_bytes: tau_max R; 0 in an outage. price: 1 + beta / R, the cost of a byte."""

    cap_bytes: float
    price: float = 1.0

    @classmethod
    def of(cls, rate_Bps: float, tau_max_s: float, beta_Bps: float = 0.0) -> Link:
        return cls(tau_max_s * rate_Bps, 1 + beta_Bps / rate_Bps) if rate_Bps > 0 else cls(0.0)


@dataclass(frozen=True, slots=True)
class Budget:
    """cost: C_t. links: by neighbour; one that is not named is in an outage.

    reserve: share of C_t for what waits.
    """

    cost: float
    links: Mapping[str, Link]
    reserve: float = 0.25


@dataclass(frozen=True, slots=True)
class Weights:
    """By group. residual: p_g. gradient: E_g and fisher: lambda_max(F_g), for the allocators of that name."""

    residual: Mapping[str, float]
    gradient: Mapping[str, float] = field(default_factory=dict)
    fisher: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What one round leaves to the next. rounds: how many an item waits. deficits: unspent cost, by group."""

    rounds: Mapping[Transfer, int] = field(default_factory=dict)
    deficits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Allocation:
    """chosen: what is sent and how; the rest waits. cost: spent of C_t."""

    chosen: Mapping[Transfer, Choice]
    cost: float
    waiting: Waiting


class BudgetLedger:
    """What is left of a budget while items are bought."""

    def __init__(self, budget: Budget) -> None:
        self._links = budget.links
        self._caps = {peer: link.cap_bytes for peer, link in budget.links.items()}
        self.limit, self.spent = budget.cost, 0.0
        self.chosen: dict[Transfer, Choice] = {}

    def price(self, item: Item, choice: Choice) -> float:
        """Cost of a choice in place of what is chosen for the item by now; infinite in an outage."""
        link = self._links.get(item.peer)
        return self._more(item, choice) * link.price if link else float("inf")

    def reachable(self, item: Item, choice: Choice) -> bool:
        """Whether the link still has the time for it."""
        return self._more(item, choice) <= self._caps.get(item.peer, 0.0)

    def grant(self, item: Item, choice: Choice) -> bool:
        """Take the choice, in place of a smaller one; False where it does not fit."""
        price = self.price(item, choice)
        if not self.reachable(item, choice) or self.spent + price > self.limit:
            return False
        self._caps[item.peer] -= self._more(item, choice)
        self.spent += price
        self.chosen[item.transfer] = choice
        return True

    def _more(self, item: Item, choice: Choice) -> int:
        held = self.chosen.get(item.transfer)
        return choice.bytes - (held.bytes if held else 0)


class Round(NamedTuple):
    """What an allocator decides by. seed: another one each round."""

    items: Sequence[Item]  # in order of their slots
    budget: Budget
    weights: Weights
    waiting: Waiting
    seed: int


Allocator = Callable[[Round, BudgetLedger], Mapping[str, float]]  # buys, and returns the deficits it leaves
ALLOCATORS: dict[str, Allocator] = {}


def allocator(name: str) -> Callable[[Allocator], Allocator]:
    """Decorator: add an allocator to the registry."""

    def add(rule: Allocator) -> Allocator:
        ALLOCATORS[name] = rule
        return rule

    return add


def allocate(
    name: str, items: Iterable[Item], budget: Budget, weights: Weights, waiting: Waiting, seed: int = 0
) -> Allocation:
    """What the allocator `name` (KeyError: none of that name) sends of the items; the same for any order."""
    ordered = sorted((item for item in items if item.choices), key=lambda item: item.transfer)
    ledger = BudgetLedger(budget)
    deficits = ALLOCATORS[name](Round(ordered, budget, weights, waiting, seed), ledger)
    left = [item.transfer for item in ordered if item.transfer not in ledger.chosen]
    rounds = {transfer: waiting.rounds.get(transfer, 0) + 1 for transfer in left}
    return Allocation(ledger.chosen, ledger.spent, Waiting(rounds, deficits))


def choices(
    stale2: float, norm2: float, peak2: float, values: int, sizes: Mapping[str, int]
) -> tuple[Choice, ...]:
    """The rate-distortion points of one matrix, those that gain something.

    stale2: ||B_mine - B_theirs||^2, which sending removes; norm2: ||B_mine||^2; peak2: mean over the codec's
    chunks of the largest value squared; values: how many there are; sizes: bytes by codec. What a codec puts
    in place: step^2 / 6 a value for stochastic rounding, step = peak / 127 (int8) or / 7 (int4).
    """
    points = []
    for codec, size in sorted(sizes.items(), key=lambda s: (s[1], s[0])):
        if codec in LEVELS:
            error = values * peak2 / LEVELS[codec] ** 2 / 6
        else:
            error = FLOAT_ERROR[codec] * norm2
        points.append(Choice(codec, size, stale2 - error))
    return tuple(point for point in points if point.gain > 0)


# -- by rate and distortion ------------------------------------------------------------------------------
@allocator("residual")
def residual(round_: Round, ledger: BudgetLedger) -> Mapping[str, float]:
    """First what waits, within the reserve; then the most weighted gain per cost, weights p_g."""
    waiting = [item for item in round_.items if item.transfer in round_.waiting.rounds]
    credit = round_.budget.cost * round_.budget.reserve
    shares = {g: max(p, LEAST_SHARE) for g, p in round_.weights.residual.items()}
    deficits = _deficit_round_robin(round_, ledger, waiting, shares, credit, lambda item: _hull(item)[:1])
    _greedily(round_.items, ledger, round_.weights.residual)
    return deficits


@allocator("gradient-only")
def gradient_only(round_: Round, ledger: BudgetLedger) -> Mapping[str, float]:
    _greedily(round_.items, ledger, round_.weights.gradient)
    return {}


@allocator("fisher-only")
def fisher_only(round_: Round, ledger: BudgetLedger) -> Mapping[str, float]:
    _greedily(round_.items, ledger, round_.weights.fisher)
    return {}


def _greedily(items: Iterable[Item], ledger: BudgetLedger, weights: Mapping[str, float]) -> None:
    """Steps along the hulls in order of weighted gain per cost. One that does not fit ends its item's."""
    steps = []
    for item in items:
        done = ledger.chosen.get(item.transfer, Choice("", 0, 0.0))
        for choice in _hull(item):
            if choice.bytes > done.bytes:
                price = ledger.price(item, choice) - ledger.price(item, done)
                gain = weights.get(item.part.group, 0.0) * (choice.gain - done.gain)
                steps.append((-gain / price, item.transfer, choice.bytes, item, choice))
                done = choice
    for *_, item, choice in sorted(steps, key=lambda step: step[:3]):
        ledger.grant(item, choice)


def _hull(item: Item) -> list[Choice]:
    """The choices on the upper convex hull of (0, 0) and all (bytes, gain), in ascending order of both."""
    hull = [Choice("", 0, 0.0)]
    for choice in sorted(item.choices, key=lambda c: (c.bytes, -c.gain)):
        if choice.gain <= hull[-1].gain:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull[1:]


def _slope(a: Choice, b: Choice) -> float:
    return (b.gain - a.gain) / (b.bytes - a.bytes) if b.bytes > a.bytes else float("inf")


# -- in turn, whole: comparisons ---------------------------------------------------------------------------
@allocator("equal-share")
def equal_share(round_: Round, ledger: BudgetLedger) -> Mapping[str, float]:
    """Every group an equal part of the budget, for its items in turn."""
    shares = {item.part.group: 1.0 for item in round_.items}
    return _deficit_round_robin(round_, ledger, round_.items, shares, round_.budget.cost, _whole)


@allocator("round-robin")
def round_robin(round_: Round, ledger: BudgetLedger) -> Mapping[str, float]:
    """Items in turn, what waited longest first."""
    for item in _longest_first(round_, round_.items):
        ledger.grant(item, item.choices[-1])
    return {}


@allocator("random")
def random(round_: Round, ledger: BudgetLedger) -> Mapping[str, float]:
    digest = hashlib.blake2b(str(round_.seed).encode(), digest_size=16).digest()
    draw = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))
    for i in draw.permutation(len(round_.items)):
        ledger.grant(round_.items[i], round_.items[i].choices[-1])
    return {}


def _whole(item: Item) -> list[Choice]:
    return [item.choices[-1]]


def _deficit_round_robin(
    round_: Round,
    ledger: BudgetLedger,
    items: Iterable[Item],
    shares: Mapping[str, float],
    credit: float,
    pick: Callable[[Item], Sequence[Choice]],
) -> dict[str, float]:
    """Each group that has items gets its share of `credit` and what it had left, and buys in turn.

    Returns what is left to those that could not pay for their next item; never more than that item's price.
    """
    queues: dict[str, list[tuple[Item, Choice]]] = {}
    for item in _longest_first(round_, items):
        for choice in pick(item):
            queues.setdefault(item.part.group, []).append((item, choice))
    whole = sum(shares.get(group, LEAST_SHARE) for group in queues)
    deficits = {}
    # Those that waited longest go first, or the others might use a link or the budget up for ever.
    for group in sorted(queues, key=lambda g: (-_rounds_waiting(round_, queues[g][0][0]), g)):
        have = round_.waiting.deficits.get(group, 0.0) + credit * shares.get(group, LEAST_SHARE) / whole
        for item, choice in queues[group]:
            if not ledger.reachable(item, choice):
                continue  # an outage is not for the others behind it to wait for
            price = ledger.price(item, choice)
            if price > have or not ledger.grant(item, choice):
                deficits[group] = min(have, price)
                break
            have -= price
    return deficits


def _longest_first(round_: Round, items: Iterable[Item]) -> list[Item]:
    return sorted(items, key=lambda item: (-_rounds_waiting(round_, item), item.transfer))


def _rounds_waiting(round_: Round, item: Item) -> int:
    return round_.waiting.rounds.get(item.transfer, 0)
