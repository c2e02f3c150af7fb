"""The dual price: its updates, what it does to an allocation, and the limit C_t that always holds."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator_free.averaging.pricing import MEMORY, DualPrice, marginal_value, next_price
from coordinator_free.averaging.rate_allocation import (
    ALLOCATORS,
    Allocation,
    Budget,
    Choice,
    Item,
    Link,
    Terms,
    Waiting,
    Weights,
    allocate,
)
from coordinator_free.identifiers import BlockKey, Part

GROUPS = ("early", "late")
ALIKE = Weights(*[dict.fromkeys(GROUPS, 1.0)] * 3)
SIZES = {"int4": 25, "int8": 50, "fp16": 100}
PEERS = ("d1", "d2")
A, B = BlockKey("a", 0), BlockKey("b", 0)


def item(gain: float, peer: str = "d1", block: BlockKey = A, group: str = "late") -> Item:
    """The gains of the codecs are 0.6, 0.9 and 1 of `gain`."""
    points = [
        Choice(c, size, gain * share) for (c, size), share in zip(SIZES.items(), (0.6, 0.9, 1.0), strict=True)
    ]
    return Item(peer, Part(block, group), tuple(points))


def limits(cost: float, reserve: float = 0.0) -> Budget:
    return Budget(cost, dict.fromkeys(PEERS, Link(1e9)), reserve)


def run(
    items: list[Item], cost: float, terms: Terms, name: str = "priced", waiting: Waiting | None = None
) -> Allocation:
    return allocate(name, items, limits(cost), ALIKE, waiting or Waiting(), 0, terms)


# -- the update --------------------------------------------------------------------------------------------
@given(price=st.floats(0, 1e3), spent=st.floats(0, 1e6), target=st.floats(1, 1e6), step=st.floats(0, 10))
def test_a_price_is_never_negative_and_moves_with_the_cost(
    price: float, spent: float, target: float, step: float
) -> None:
    after = next_price(price, spent, target, step)
    assert after >= 0
    assert after >= price if spent >= target else after <= price


def test_the_price_under_a_constant_load_has_a_closed_form() -> None:
    """nu_T = max(0, nu_0 + T kappa (c / target - 1))."""
    over, under = 0.0, 2.0
    for rounds in range(1, 30):
        over, under = next_price(over, 150, 100, 0.2), next_price(under, 50, 100, 0.2)
        assert over == pytest.approx(0.1 * rounds)
        assert under == pytest.approx(max(0.0, 2.0 - 0.1 * rounds))
    assert under == 0.0


@given(costs=st.lists(st.floats(0, 100), min_size=1, max_size=50), step=st.floats(0.01, 1))
def test_the_mean_cost_is_bounded_by_the_last_price(costs: list[float], step: float) -> None:
    price = 0.0
    for cost in costs:
        price = next_price(price, cost, 60, step)
    mean = sum(costs) / len(costs)
    assert mean <= 60 * (1 + price / (step * len(costs))) + 1e-6


def test_the_going_rate_is_a_running_mean_that_keeps_nothing_of_empty_rounds() -> None:
    price = DualPrice(0.5, 0.5, 100)
    price.settle(100)  # twice the target of 50
    assert price.value == 0.5
    assert price.floor(4.0) == 2.0  # the first round sets the rate
    assert price.floor(None) == 2.0
    assert price.floor(14.0) == pytest.approx(0.5 * (4 + 10 / MEMORY))


# -- the allocator -------------------------------------------------------------------------------------------
@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Item], Budget]:
    slots = draw(
        st.lists(st.tuples(st.sampled_from(PEERS), st.sampled_from((A, B)), st.sampled_from(GROUPS)))
    )
    items = [item(draw(st.floats(0.01, 10)), *slot) for slot in dict.fromkeys(slots)]
    links = {p: Link(draw(st.floats(0, 500)), draw(st.floats(1, 3))) for p in PEERS}
    return items, Budget(draw(st.floats(0, 900)), links, draw(st.sampled_from([0.0, 0.25, 1.0])))


TERMS = st.builds(
    Terms,
    floor=st.floats(0, 0.2),
    share=st.floats(0.1, 1),
    survival=st.dictionaries(st.sampled_from((A, B)), st.floats(0, 1)),
)


@settings(max_examples=60)
@given(case=cases(), terms=TERMS)
def test_no_price_spends_more_than_the_budget(case: tuple[list[Item], Budget], terms: Terms) -> None:
    items, budget = case
    waiting = Waiting()
    for _ in range(4):
        made = allocate("priced", items, budget, ALIKE, waiting, 0, terms)
        assert made.cost <= budget.cost
        for peer, link in budget.links.items():
            assert sum(c.bytes for (to, _), c in made.chosen.items() if to == peer) <= link.cap_bytes
        waiting = made.waiting


@settings(max_examples=60)
@given(case=cases())
def test_without_a_price_it_is_residual(case: tuple[list[Item], Budget]) -> None:
    items, budget = case
    weights = Weights({"early": 0.25, "late": 0.75})
    waiting = Waiting()
    for _ in range(3):
        made, other = (allocate(n, items, budget, weights, waiting) for n in ("priced", "residual"))
        assert made == other
        waiting = made.waiting


@pytest.mark.parametrize("name", sorted({*ALLOCATORS} - {"priced"}))
def test_other_allocators_ignore_the_terms(name: str) -> None:
    items = [item(gain, peer, block) for gain in (1.0,) for peer in PEERS for block in (A, B)]
    assert run(items, 120, Terms(9.0, 0.1, {A: 0.0}), name) == run(items, 120, Terms(), name)


def test_a_choice_below_the_floor_is_not_bought_even_if_the_budget_has_room() -> None:
    # int4 has 0.6 / 25 = 0.024 per byte, and half of it with two groups; int8 then has 0.3 / 25 = 0.012
    made = run([item(1.0)], 1e6, Terms(floor=0.01))
    assert {c.codec for c in made.chosen.values()} == {"int4"}
    assert made.waiting.rounds == {}
    assert run([item(1.0)], 1e6, Terms(floor=0.02)).chosen == {}


def test_a_value_is_the_gain_times_the_survival_of_the_owner() -> None:
    stays, goes = item(1.0, block=A), item(1.8, block=B)
    assert set(run([stays, goes], 25, Terms()).chosen) == {goes.transfer}
    assert set(run([stays, goes], 25, Terms(survival={B: 0.5})).chosen) == {stays.transfer}
    assert set(run([stays, goes], 25, Terms(survival={B: 0.6})).chosen) == {goes.transfer}


def test_a_block_whose_owner_is_gone_gets_nothing_of_the_reserve_either() -> None:
    gone = item(1.0)
    waiting = Waiting({gone.transfer: 9})
    budget = limits(1e6, reserve=1.0)
    assert allocate("priced", [gone], budget, ALIKE, waiting, 0, Terms(survival={A: 0.0})).chosen == {}
    assert allocate("priced", [gone], budget, ALIKE, waiting, 0, Terms(floor=9.0)).chosen


def test_the_marginal_value_is_that_of_the_step_that_reaches_the_target() -> None:
    budget = Budget(1e6, {"d1": Link(1e9, 2.0), "d2": Link(0.0)})
    offered = [item(4.0, "d1", A), item(2.0, "d1", B), item(9.0, "d2"), item(9.0, "d3")]

    def value(target: float) -> float | None:
        return marginal_value(offered, budget, ALIKE.residual, {B: 0.5}, target)

    # At a price of 2 a step costs 50, 50 or 100; two groups weigh 1/2. A gains 2.4, 1.2, 0.4 and B 1/4 of it.
    assert value(50) == pytest.approx(0.5 * 2.4 / 50)
    assert value(60) == pytest.approx(0.5 * 1.2 / 50)
    assert value(110) == pytest.approx(0.5 * 0.6 / 50)
    assert value(1e6) == pytest.approx(0.5 * 0.1 / 100)
    assert marginal_value([item(9.0, "d2")], budget, ALIKE.residual, {}, 50) is None
    # The block of an owner that is gone would be the last step, of value 0.
    gone = marginal_value(offered[:2], budget, ALIKE.residual, {B: 0.0}, 1e6)
    assert gone == pytest.approx(0.5 * 0.4 / 100)


# -- over rounds -------------------------------------------------------------------------------------------
def spend(rounds: int, gains: Mapping[int, float]) -> tuple[list[float], DualPrice]:
    """The cost of each round, with 40 items whose gains differ by round; without an entry: 1 on average."""
    price, spent = DualPrice(0.2, 0.5, 1000), list[float]()
    for round_ in range(rounds):
        scale = gains.get(round_, 1.0)
        items = [item(scale * (1 + n) / 20, PEERS[n % 2], BlockKey(f"o{n}", 0)) for n in range(40)]
        floor = price.floor(marginal_value(items, limits(1000), ALIKE.residual, {}, price.target))
        made = allocate("priced", items, limits(1000), ALIKE, Waiting(), 0, Terms(floor, 0.5))
        price.settle(made.cost)
        spent.append(made.cost)
    return spent, price


def test_the_mean_cost_settles_at_the_target_and_a_round_of_worth_spends_up_to_the_limit() -> None:
    event = 150
    spent, price = spend(150, {})
    assert price.value == pytest.approx(1, abs=0.15)
    spent, _ = spend(200, {event: 10.0})
    assert sum(spent[50:150]) / 100 == pytest.approx(500, rel=0.05)
    assert max(spent) <= 1000
    assert spent[event] > 900 > 1.2 * max(spent[100:150])


def test_a_calm_round_spends_less() -> None:
    spent, _ = spend(160, {150: 0.2})
    assert spent[150] < 0.5 * min(spent[140:150])
