"""Rate allocation: within the budget, near the optimum, and no item waits for ever."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from coordinator_free.averaging.rate_allocation import (
    ALLOCATORS,
    Budget,
    Choice,
    Item,
    Link,
    Waiting,
    Weights,
    allocate,
    choices,
)
from coordinator_free.identifiers import BlockKey, Part

GROUPS = ("early", "mid", "late")
PEERS = ("d1", "d2", "d3")
NAMES = sorted(ALLOCATORS)
WEIGHTS = Weights(
    {"early": 0.1, "mid": 0.3, "late": 0.6},
    {"early": 5.0, "mid": 1.0, "late": 1.0},
    {"early": 1.0, "mid": 5.0, "late": 1.0},
)
SIZES = {"int4": 25, "int8": 50, "fp16": 100}


def item(peer="d1", group="late", owner="d9", gains=(5.0, 8.0, 9.0), scale=1) -> Item:
    points = [Choice(c, b * scale, g) for (c, b), g in zip(SIZES.items(), gains, strict=True)]
    return Item(peer, Part(BlockKey(owner, 0), group), tuple(points))


def everything(count: int = 4, **options) -> list[Item]:
    return [item(p, g, f"d{i}", **options) for p in PEERS for g in GROUPS for i in range(count)]


def budget(cost: float, cap: float = 1e9, price: float = 1.0, **options) -> Budget:
    return Budget(cost, dict.fromkeys(PEERS, Link(cap, price)), **options)


def value(chosen, weights=WEIGHTS.residual) -> float:
    return sum(weights[slot[1].group] * choice.gain for slot, choice in chosen.items())


@st.composite
def cases(draw, most: int = 12):
    slots = draw(
        st.lists(
            st.tuples(st.sampled_from(PEERS), st.sampled_from(GROUPS), st.integers(0, 2)),
            max_size=most,
            unique=True,
        )
    )
    items = []
    for peer, group, owner in slots:
        sizes = sorted(draw(st.sets(st.integers(1, 200), min_size=1, max_size=3)))
        gains = [draw(st.floats(0.01, 10.0)) for _ in sizes]
        points = tuple(Choice(f"c{b}", b, g) for b, g in zip(sizes, gains, strict=True))
        items.append(Item(peer, Part(BlockKey(f"d{owner}", 0), group), points))
    links = {
        p: Link(draw(st.floats(0, 500)), draw(st.floats(1, 3))) for p in PEERS[: draw(st.integers(1, 3))]
    }
    return items, Budget(draw(st.floats(0, 900)), links, draw(st.sampled_from([0.0, 0.25, 1.0])))


def used(chosen, peer) -> int:
    return sum(choice.bytes for (to, _), choice in chosen.items() if to == peer)


# -- within the budget ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(case=cases(), seed=st.integers(0, 9))
def test_neither_the_budget_nor_a_link_is_ever_exceeded(name, case, seed):
    items, limits = case
    waiting = Waiting()
    for _ in range(4):
        made = allocate(name, items, limits, WEIGHTS, waiting, seed)
        cost = sum(used(made.chosen, p) * limits.links[p].price for p in limits.links)
        assert made.cost <= limits.cost
        assert cost == pytest.approx(made.cost)
        assert all(used(made.chosen, p) <= link.cap_bytes for p, link in limits.links.items())
        assert {slot[0] for slot in made.chosen} <= limits.links.keys()
        waiting = made.waiting


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(case=cases(), rng=st.randoms(use_true_random=False))
def test_the_order_of_the_items_does_not_matter(name, case, rng):
    items, limits = case
    one = allocate(name, items, limits, WEIGHTS, Waiting())
    assert allocate(name, rng.sample(items, len(items)), limits, WEIGHTS, Waiting()) == one


@pytest.mark.parametrize("name", NAMES)
def test_with_enough_budget_every_item_is_sent_in_its_largest_codec(name):
    made = allocate(name, everything(), budget(1e6), WEIGHTS, Waiting())
    assert len(made.chosen) == 36 and {c.codec for c in made.chosen.values()} == {"fp16"}
    assert made.waiting == Waiting()


@pytest.mark.parametrize("name", NAMES)
def test_a_neighbour_in_an_outage_gets_nothing_and_the_others_do(name):
    limits = Budget(1e6, {"d1": Link.of(0.0, 5.0), "d2": Link.of(1e6, 5.0)})
    made = allocate(name, everything(), limits, WEIGHTS, Waiting())
    assert {slot[0] for slot in made.chosen} == {"d2"}
    assert set(made.waiting.rounds.values()) == {1}


def test_a_links_cap_and_price():
    assert Link.of(rate_Bps=1000.0, tau_max_s=2.0, beta_Bps=500.0) == (2000.0, 1.5)
    made = allocate("residual", [item()], Budget(99, {"d1": Link(1e9, 2.0)}), WEIGHTS, Waiting())
    assert made.chosen["d1", item().part].codec == "int4" and made.cost == 50  # int8 would cost 100


# -- near the optimum ----------------------------------------------------------------------------------------
def optimum(items, limits: Budget, weights) -> float:
    """The exact multiple-choice knapsack."""
    options = [(i, choice) for i, it in enumerate(items) for choice in it.choices]
    if not options:
        return 0.0
    gains = np.array([weights[items[i].part.group] * c.gain for i, c in options])
    rows, upper = [], []
    for i in range(len(items)):
        rows.append([float(i == j) for j, _ in options])
        upper.append(1.0)
    for peer in PEERS:
        link = limits.links.get(peer)
        rows.append([c.bytes if items[j].peer == peer else 0.0 for j, c in options])
        upper.append(link.cap_bytes if link else 0.0)
    prices = {p: link.price for p, link in limits.links.items()}
    rows.append([c.bytes * prices.get(items[j].peer, 1.0) for j, c in options])
    upper.append(limits.cost)
    found = optimize.milp(
        -gains,
        constraints=optimize.LinearConstraint(np.array(rows), -np.inf, upper),
        integrality=np.ones(len(options)),
        bounds=optimize.Bounds(0, 1),
    )
    return float(-found.fun)


@settings(max_examples=150)
@given(case=cases(most=8))
def test_within_one_item_per_binding_constraint_of_the_optimum(case):
    items, limits = case
    limits = replace(limits, reserve=0.0)
    made = allocate("residual", items, limits, WEIGHTS, Waiting())
    best = optimum(items, limits, WEIGHTS.residual)
    got = value(made.chosen)
    assert got <= best + 1e-6
    most = sorted(
        (max(WEIGHTS.residual[i.part.group] * c.gain for c in i.choices) for i in items), reverse=True
    )
    binding = [p for p in PEERS if _binds(items, made, limits, p)] + ["budget"]
    assert best - got <= sum(most[: len(binding)]) + 1e-6


def _binds(items, made, limits, peer) -> bool:
    """Whether all that this neighbour lacks is more than its link takes."""
    whole = sum(max(c.bytes for c in i.choices) for i in items if i.peer == peer)
    return whole > (limits.links[peer].cap_bytes if peer in limits.links else 0.0)


def test_close_to_the_optimum_where_items_are_small():
    rng = np.random.default_rng(0)
    items = [
        item(p, g, f"d{i}", gains=np.sort(rng.random(3)) * 10)
        for p in PEERS
        for g in GROUPS
        for i in range(4)
    ]
    limits = budget(900, cap=400, reserve=0.0)
    made = allocate("residual", items, limits, WEIGHTS, Waiting())
    assert value(made.chosen) >= 0.97 * optimum(items, limits, WEIGHTS.residual)


@settings(max_examples=100)
@given(case=cases(), more=st.floats(0, 300))
def test_a_larger_budget_never_gains_less(case, more):
    items, limits = case
    limits = replace(limits, reserve=0.0)
    small = allocate("residual", items, limits, WEIGHTS, Waiting())
    large = allocate("residual", items, replace(limits, cost=limits.cost + more), WEIGHTS, Waiting())
    assert value(large.chosen) >= value(small.chosen) - 1e-9


def test_a_choice_below_the_hull_is_never_taken():
    """int8 gains so little over int4 that only fp16 is worth more bytes."""
    odd = item(gains=(5.0, 5.1, 9.0))
    for cost in range(0, 120, 5):
        made = allocate("residual", [odd], budget(cost), WEIGHTS, Waiting())
        assert {c.codec for c in made.chosen.values()} <= {"int4", "fp16"}


def test_bits_go_where_they_lower_the_weighted_residual_most():
    items = [item(group="early"), item(group="late")]
    made = allocate("residual", items, budget(75), WEIGHTS, Waiting())
    assert {slot[1].group: c.codec for slot, c in made.chosen.items()} == {"late": "int8", "early": "int4"}


@pytest.mark.parametrize(
    ("name", "first"), [("gradient-only", "early"), ("fisher-only", "mid"), ("residual", "late")]
)
def test_each_allocator_uses_its_own_weights(name, first):
    made = allocate(name, [item(group=g) for g in GROUPS], budget(30), WEIGHTS, Waiting())
    assert [slot[1].group for slot in made.chosen] == [first]


# -- waiting -------------------------------------------------------------------------------------------------
def rounds_waited(name: str, items: list[Item], limits: Budget, rounds: int, weights=WEIGHTS) -> dict:
    """The longest wait of each transfer if every part is new in every round."""
    waiting, longest = Waiting(), dict.fromkeys((i.transfer for i in items), 0)
    for seed in range(rounds):
        waiting = allocate(name, items, limits, weights, waiting, seed).waiting
        for slot, waited in waiting.rounds.items():
            longest[slot] = max(longest[slot], waited)
    return longest


@pytest.mark.parametrize("name", ["residual", "equal-share", "round-robin"])
@pytest.mark.parametrize("cap", [1e9, 100])
def test_no_item_waits_for_ever(name, cap):
    longest = rounds_waited(name, everything(), budget(360, cap), 300)
    assert max(longest.values()) < 80


def test_without_a_reserve_low_priorities_starve():
    longest = rounds_waited("residual", everything(), budget(360, reserve=0.0), 300)
    assert max(longest.values()) == 300


def test_a_group_without_priority_is_sent_at_last():
    weights = Weights({"early": 0.0, "mid": 0.0, "late": 1.0})
    longest = rounds_waited("residual", everything(), budget(360), 300, weights)
    assert max(longest.values()) < 200


def test_how_often_a_group_is_sent_follows_its_priority():
    items, waiting, sent = everything(), Waiting(), dict.fromkeys(GROUPS, 0)
    for _ in range(300):
        made = allocate("residual", items, budget(100, reserve=1.0), WEIGHTS, waiting)
        waiting = made.waiting
        for slot in made.chosen:
            sent[slot[1].group] += 1
    assert sent["mid"] / sent["early"] == pytest.approx(3, rel=0.15)
    assert sent["late"] / sent["early"] == pytest.approx(6, rel=0.15)


@settings(max_examples=40)
@given(case=cases(), name=st.sampled_from(["residual", "equal-share"]))
def test_deficits_stay_below_the_price_of_one_item(case, name):
    items, limits = case
    waiting = Waiting()
    for _ in range(10):
        waiting = allocate(name, items, limits, WEIGHTS, waiting).waiting
        for group, deficit in waiting.deficits.items():
            dearest = max(
                limits.links[i.peer].price * max(c.bytes for c in i.choices)
                for i in items
                if i.part.group == group and i.peer in limits.links
            )
            assert 0 <= deficit <= dearest


def test_sent_or_unneeded_items_no_longer_wait():
    waiting = Waiting({("d1", item().part): 7, ("d1", item(owner="d8").part): 3}, {"late": 10.0})
    made = allocate("residual", [item()], budget(1e6), WEIGHTS, waiting)
    assert made.waiting == Waiting()


def test_nothing_to_send():
    assert allocate("residual", [], budget(100), WEIGHTS, Waiting()).chosen == {}
    nothing = Item("d1", item().part, ())
    assert allocate("round-robin", [nothing], budget(100), WEIGHTS, Waiting()).chosen == {}


def test_equal_share_gives_every_group_as_many_bytes():
    made = allocate("equal-share", everything(), budget(600), WEIGHTS, Waiting())
    by_group = {g: sum(c.bytes for slot, c in made.chosen.items() if slot[1].group == g) for g in GROUPS}
    assert by_group == dict.fromkeys(GROUPS, 200)


def test_random_depends_on_the_seed():
    drawn = {
        frozenset(allocate("random", everything(), budget(300), WEIGHTS, Waiting(), s).chosen)
        for s in range(9)
    }
    assert len(drawn) > 1


# -- rate and distortion -------------------------------------------------------------------------------------
def test_the_points_of_a_matrix():
    points = choices(stale2=4.0, norm2=16.0, peak2=0.49, values=300, sizes=SIZES)
    assert [p.codec for p in points] == ["int4", "int8", "fp16"]
    assert points[0].gain == pytest.approx(4.0 - 300 * 0.01 / 6)
    assert points[1].gain == pytest.approx(4.0 - 300 * 0.49 / 127**2 / 6)
    assert points[2].gain == pytest.approx(4.0, rel=1e-5)


def test_a_codec_whose_error_exceeds_its_gain_is_not_a_choice():
    points = choices(stale2=0.4, norm2=16.0, peak2=0.49, values=300, sizes=SIZES)
    assert [p.codec for p in points] == ["int8", "fp16"]
    assert choices(stale2=0.0, norm2=16.0, peak2=0.49, values=300, sizes=SIZES) == ()


@pytest.mark.parametrize("codec", ["int4", "int8", "fp16", "bf16"])
def test_the_predicted_error_is_that_of_the_codec(codec):
    torch = pytest.importorskip("torch")
    from transport.wire.tensor_codec import decode, encode

    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((640, 8)).astype(np.float32))
    peak2 = float(matrix.flatten().view(-1, 128).abs().amax(1).square().mean())
    norm2, far = float(matrix.square().sum()), 1e4
    draw = np.random.Generator(np.random.Philox(1))
    lost = float((decode(encode(matrix, codec, draw), codec, 640, 8) - matrix).square().sum())
    (point,) = choices(far, norm2, peak2, matrix.numel(), {codec: 1})
    assert far - point.gain == pytest.approx(lost, rel=0.6)
