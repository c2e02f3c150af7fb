"""Rate allocation: what a device sends in this round within its budget (method 8, eq. 7-8 and 12).

For each (neighbour, group, block) that a neighbour lacks, the allocator sends nothing, or the block in one of
several codecs. It maximises the weighted sum of gains subject to sum c <= C_t with c = b + beta b / R, and to
sum b / R <= tau_max on each link. Each item's choices are reduced to their upper convex hull, and the steps
along the hulls are taken in order of gain per cost. The constraints are nested (links within the budget), so
this order is optimal for the relaxed problem, except for one step at each binding constraint.

An item that does not fit waits. Deficit round-robin (Shreedhar and Varghese, 1995) spends a reserved share of
the budget on waiting items, over the groups in proportion to p_g. So every item is sent at last, and p_g sets
how often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator_free.identifiers import BlockKey, Part
from coordinator_free.seeded_random import blake2b_128, generator

Transfer = tuple[str, Part]  # neighbour, part: the item that gets a codec
LEAST_SHARE = 0.05  # lower bound of p_g in the reserve, so that groups without priority are sent at last
LEVELS = {"int8": 127, "int4": 7}
FLOAT_ERROR = {"fp32": 0.0, "fp16": 2.0**-24, "bf16": 2.0**-18}  # squared error / squared norm


class Choice(NamedTuple):
    """One codec for an item. `gain`: the decrease of ||B_mine - B_theirs||^2."""

    codec: str
    bytes: int
    gain: float


@dataclass(frozen=True, slots=True)
class Item:
    """A part that a neighbour lacks. `choices`: in ascending order of bytes, the smallest at least 1 byte."""

    peer: str
    part: Part
    choices: tuple[Choice, ...]

    @property
    def transfer(self) -> Transfer:
        return self.peer, self.part


class Link(NamedTuple):
    """The link to one neighbour.

    `cap_bytes`: tau_max R, 0 in an outage. `price`: 1 + beta / R, the cost of one byte.
    """

    cap_bytes: float
    price: float = 1.0

    @classmethod
    def of(cls, rate_Bps: float, tau_max_s: float, beta_Bps: float = 0.0) -> Link:
        """From R in bytes/s (0: outage), tau_max in s and beta in bytes/s."""
        return cls(tau_max_s * rate_Bps, 1 + beta_Bps / rate_Bps) if rate_Bps > 0 else cls(0.0)


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of one round.

    `cost`: C_t in bytes. `links`: by neighbour; a neighbour without an entry is in an outage. `reserve`: the
    share of C_t for waiting items.
    """

    cost: float
    links: Mapping[str, Link]
    reserve: float = 0.25


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights by group. `residual`: p_g. `gradient`: E_g. `fisher`: lambda_max(F_g).

    The allocators `gradient-only` and `fisher-only` use the last two.
    """

    residual: Mapping[str, float]
    gradient: Mapping[str, float] = field(default_factory=dict)
    fisher: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Terms:
    """What `priced` takes into account beside the gains (pricing.py). The defaults change nothing.

    `floor`: the least value per cost of a choice. `share`: the target divided by C_t. `survival`: the
    probability that the owner of a block survives the horizon; without an entry 1.
    """

    floor: float = 0.0
    share: float = 1.0
    survival: Mapping[BlockKey, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What one round leaves to the next.

    `rounds`: how many rounds each item has waited. `deficits`: unspent cost by group.
    """

    rounds: Mapping[Transfer, int] = field(default_factory=dict)
    deficits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Allocation:
    """`chosen`: what is sent, and in which codec. `cost`: the part of C_t that it uses.

    The other items wait.
    """

    chosen: Mapping[Transfer, Choice]
    cost: float
    waiting: Waiting


class BudgetLedger:
    """What is left of a budget and of each link while an allocator grants items."""

    def __init__(self, budget: Budget) -> None:
        self._links = budget.links
        self._caps = {peer: link.cap_bytes for peer, link in budget.links.items()}
        self.limit, self.spent = budget.cost, 0.0
        self.chosen: dict[Transfer, Choice] = {}

    def price(self, item: Item, choice: Choice) -> float:
        """The additional cost of `choice` in place of the item's present choice; infinite in an outage."""
        link = self._links.get(item.peer)
        return self._more(item, choice) * link.price if link else float("inf")

    def reachable(self, item: Item, choice: Choice) -> bool:
        """Whether the link has time left for the choice."""
        return self._more(item, choice) <= self._caps.get(item.peer, 0.0)

    def grant(self, item: Item, choice: Choice) -> bool:
        """Choose `choice` for the item in place of a smaller one. Returns False if it does not fit."""
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
    """The input. `items`: in order of their transfers. `seed`: another one a round. `terms`: of `priced`."""

    items: Sequence[Item]
    budget: Budget
    weights: Weights
    waiting: Waiting
    seed: int
    terms: Terms = Terms()


Allocator = Callable[[Round, BudgetLedger], Mapping[str, float]]  # grants items; returns deficits by group
ALLOCATORS: dict[str, Allocator] = {}


def allocator(name: str) -> Callable[[Allocator], Allocator]:
    """Decorator: register an allocator under a name."""

    def add(rule: Allocator) -> Allocator:
        ALLOCATORS[name] = rule
        return rule

    return add


def allocate(
    name: str,
    items: Iterable[Item],
    budget: Budget,
    weights: Weights,
    waiting: Waiting,
    seed: int = 0,
    terms: Terms = Terms(),
) -> Allocation:
    """Run the allocator `name`. The result does not depend on the order of `items`.

    Raises KeyError for an unknown name.
    """
    ordered = sorted((item for item in items if item.choices), key=lambda item: item.transfer)
    ledger = BudgetLedger(budget)
    deficits = ALLOCATORS[name](Round(ordered, budget, weights, waiting, seed, terms), ledger)
    left = [item.transfer for item in ordered if item.transfer not in ledger.chosen]
    rounds = {transfer: waiting.rounds.get(transfer, 0) + 1 for transfer in left}
    return Allocation(ledger.chosen, ledger.spent, Waiting(rounds, deficits))


def choices(
    stale2: float, norm2: float, peak2: float, values: int, sizes: Mapping[str, int]
) -> tuple[Choice, ...]:
    """The rate-distortion points of one matrix that gain something.

    `stale2`: ||B_mine - B_theirs||^2, which sending removes. `norm2`: ||B_mine||^2. `peak2`: mean over the
    codec's chunks of the largest squared value. `values`: number of values. `sizes`: bytes by codec.
    Stochastic rounding adds step^2 / 6 per value, with step = peak / 127 (int8) or peak / 7 (int4).
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
    """First the waiting items within the reserve, then the largest p_g-weighted gain per cost."""
    deficits = _serve_waiting(round_, ledger, round_.items, round_.budget.cost)
    _greedily(round_.items, ledger, round_.weights.residual)
    return deficits


@allocator("priced")
def priced(round_: Round, ledger: BudgetLedger) -> Mapping[str, float]:
    """As `residual`, for choices that are worth the price of the budget (docs/pricing.md).

    The reserve is a share of the target and not of C_t. Blocks whose owners are known to be gone get nothing.
    """
    terms = round_.terms
    items = [item for item in round_.items if terms.survival.get(item.part.block, 1.0) > 0]
    deficits = _serve_waiting(round_, ledger, items, terms.share * round_.budget.cost)
    _greedily(items, ledger, normalised(round_.weights.residual), terms)
    return deficits


def normalised(weights: Mapping[str, float]) -> Mapping[str, float]:
    """The weights of the groups divided by their sum."""
    whole = sum(weights.values())
    return {group: weight / whole for group, weight in weights.items()} if whole else weights


def _serve_waiting(
    round_: Round, ledger: BudgetLedger, items: Iterable[Item], cost: float
) -> Mapping[str, float]:
    """Spend the reserve, a share of `cost`, on the waiting items; returns the deficits."""
    waiting = [item for item in items if item.transfer in round_.waiting.rounds]
    shares = {g: max(p, LEAST_SHARE) for g, p in round_.weights.residual.items()}
    credit = cost * round_.budget.reserve
    return _deficit_round_robin(round_, ledger, waiting, shares, credit, lambda item: _hull(item)[:1])


@allocator("gradient-only")
def gradient_only(round_: Round, ledger: BudgetLedger) -> Mapping[str, float]:
    """The largest E_g-weighted gain per cost (comparison)."""
    _greedily(round_.items, ledger, round_.weights.gradient)
    return {}


@allocator("fisher-only")
def fisher_only(round_: Round, ledger: BudgetLedger) -> Mapping[str, float]:
    """The largest lambda_max(F_g)-weighted gain per cost (comparison)."""
    _greedily(round_.items, ledger, round_.weights.fisher)
    return {}


def _greedily(
    items: Iterable[Item], ledger: BudgetLedger, weights: Mapping[str, float], terms: Terms = Terms()
) -> None:
    """Take steps along the hulls in order of value per cost, as long as they fit and reach the floor."""
    for step in steps(items, ledger, weights, terms.survival):
        if step.value >= terms.floor:
            ledger.grant(step.item, step.choice)


class Step(NamedTuple):
    """A step along the hull of an item to `choice`. `value`: per cost. `cost`: beyond the step before."""

    value: float
    cost: float
    item: Item
    choice: Choice


def steps(
    items: Iterable[Item],
    ledger: BudgetLedger,
    weights: Mapping[str, float],
    survival: Mapping[BlockKey, float],
) -> list[Step]:
    """The steps beyond what the ledger has granted, in order of falling value per cost.

    The steps of one item have falling values, so that each comes after those that it builds on.
    """
    found = []
    for item in items:
        done = ledger.chosen.get(item.transfer, Choice("", 0, 0.0))
        weight = survival.get(item.part.block, 1.0) * weights.get(item.part.group, 0.0)
        for choice in _hull(item):
            if choice.bytes > done.bytes:
                cost = ledger.price(item, choice) - ledger.price(item, done)
                found.append(Step(weight * (choice.gain - done.gain) / cost, cost, item, choice))
                done = choice
    return sorted(found, key=lambda step: (-step.value, step.item.transfer, step.choice.bytes))


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


# -- comparisons: items in turn, in the largest codec --------------------------------------------------------
@allocator("equal-share")
def equal_share(round_: Round, ledger: BudgetLedger) -> Mapping[str, float]:
    """Each group gets an equal share of the budget for its items in turn."""
    shares = {item.part.group: 1.0 for item in round_.items}
    return _deficit_round_robin(round_, ledger, round_.items, shares, round_.budget.cost, _whole)


@allocator("round-robin")
def round_robin(round_: Round, ledger: BudgetLedger) -> Mapping[str, float]:
    """Items in turn, those that waited longest first."""
    for item in _longest_first(round_, round_.items):
        ledger.grant(item, item.choices[-1])
    return {}


@allocator("random")
def random(round_: Round, ledger: BudgetLedger) -> Mapping[str, float]:
    """Items in random order."""
    draw = generator(round_.seed, digest=blake2b_128)
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
    """Each group with items gets its share of `credit` plus its deficit, and spends it on its items in turn.

    Returns the unspent cost of the groups that could not pay for their next item, at most that item's price.
    """
    queues: dict[str, list[tuple[Item, Choice]]] = {}
    for item in _longest_first(round_, items):
        for choice in pick(item):
            queues.setdefault(item.part.group, []).append((item, choice))
    whole = sum(shares.get(group, LEAST_SHARE) for group in queues)
    deficits = {}
    # Groups that waited longest go first. Otherwise others could use up a link or the budget in every round.
    for group in sorted(queues, key=lambda g: (-_rounds_waiting(round_, queues[g][0][0]), g)):
        have = round_.waiting.deficits.get(group, 0.0) + credit * shares.get(group, LEAST_SHARE) / whole
        for item, choice in queues[group]:
            if not ledger.reachable(item, choice):
                continue  # items behind it must not wait for an outage to end
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
