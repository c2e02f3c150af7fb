"""The problem that an allocator solves, and the items that it leaves to the next round."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from coordinator_free.averaging.copy_distances import Distances, MatrixStatistics
from coordinator_free.averaging.pricing import next_price
from coordinator_free.averaging.rate_allocation import ALLOCATORS, Budget, Link, Transfer, Weights
from coordinator_free.identifiers import BlockKey, Part
from peers.protocol.send_allocation import SendAllocation, Supply, send_allocation
from peers.radio_config import RadioConfig

OWN, THEIRS = BlockKey("d0", 0), BlockKey("d1", 0)
GROUPS = ("early", "late")
SIZES = {group: {"fp16": 100, "int8": 50, "int4": 25} for group in GROUPS}
ALIKE = Weights(*[dict.fromkeys(GROUPS, 1.0)] * 3)
EARLY, LATE = Part(OWN, "early"), Part(OWN, "late")
SLOTS: list[Transfer] = [
    (peer, Part(key, g)) for peer in ("d1", "d2") for key in (OWN, THEIRS) for g in GROUPS
]


def supply(cost: float, apart2: Mapping[Transfer, float] | None = None, norm2: float = 8.0) -> Supply:
    links = {peer: Link(1e9) for peer in ("d1", "d2")}
    matrices = {part: MatrixStatistics(norm2, 0.1, 100) for _, part in SLOTS}
    return Supply(Budget(cost, links), SIZES, Distances(matrices, apart2 or {}))


def choose(
    of: SendAllocation,
    given: Supply,
    wanted: list[Transfer] = SLOTS,
    asked: frozenset[Transfer] = frozenset(),
    round_: int = 3,
) -> dict[Transfer, str]:
    return of.choose(wanted, asked, round_, given, ALIKE)


@pytest.mark.parametrize("name", sorted(ALLOCATORS))
def test_the_granted_transfers_fit_the_budget(name: str) -> None:
    of, spent = SendAllocation(name, 0, "d0"), []
    for round_ in range(10):
        chosen = choose(of, supply(180), round_=round_)
        spent.append(sum(SIZES[part.group][codec] for (_, part), codec in chosen.items()))
    assert 0 < max(spent) <= 180


def test_the_part_with_the_largest_distance_is_granted_first() -> None:
    near = dict.fromkeys(SLOTS, 0.5)
    chosen = choose(SendAllocation("residual", 0, "d0"), supply(30, {**near, ("d2", LATE): 5.0}))
    assert set(chosen) == {("d2", LATE)}


def test_an_unknown_neighbour_copy_counts_as_zero() -> None:
    known = {slot: 7.0 for slot in SLOTS if slot != ("d1", EARLY)}
    assert set(choose(SendAllocation("residual", 0, "d0"), supply(30, known))) == {("d1", EARLY)}


def test_a_requested_part_is_sent_even_if_it_was_sent_before() -> None:
    slot: Transfer = ("d1", EARLY)
    known = {slot: 0.0}
    assert choose(SendAllocation("residual", 0, "d0"), supply(1e6, known), [slot]) == {}
    assert choose(SendAllocation("residual", 0, "d0"), supply(1e6, known), [slot], frozenset([slot]))
    zero = supply(1e6, known, norm2=0.0)
    assert choose(SendAllocation("residual", 0, "d0"), zero, [slot], frozenset([slot])) == {slot: "int4"}


def test_a_matrix_without_a_measurement_waits_a_round() -> None:
    new: Transfer = ("d1", Part(BlockKey("d7", 0), "early"))
    assert choose(SendAllocation("residual", 0, "d0"), supply(1e6), [new], frozenset([new])) == {}


def test_the_waiting_time_of_a_group_that_is_not_exchanged_is_kept() -> None:
    of = SendAllocation("residual", 0, "d0")
    choose(of, supply(0.0))
    choose(of, supply(0.0))
    early = [slot for slot in SLOTS if slot[1].group == "early"]
    choose(of, supply(1e6), early)
    assert of.waiting.rounds == {slot: 2 for slot in SLOTS if slot[1].group == "late"}
    assert set(of.waiting.deficits) <= {"late"}


def test_no_transfer_of_a_deleted_block_waits() -> None:
    of = SendAllocation("residual", 0, "d0")
    choose(of, supply(0.0))
    of.drop_block(THEIRS)
    assert {part.block for _, part in of.waiting.rounds} == {OWN}


def test_no_transfer_waits_for_a_neighbour_that_has_gone() -> None:
    of = SendAllocation("residual", 0, "d0")
    choose(of, supply(0.0))
    of.forget_peer("d1")
    assert {peer for peer, _ in of.waiting.rounds} == {"d2"}


def test_only_priced_has_a_price() -> None:
    for name in sorted(ALLOCATORS):
        made = send_allocation(RadioConfig(allocator=name), 0, "d0")
        assert made is not None and (made.price is not None) == (name == "priced")
    assert send_allocation(RadioConfig(), 0, "d0") is None


def test_the_price_follows_the_granted_cost() -> None:
    of = send_allocation(RadioConfig(allocator="priced", budget_bytes=200), 0, "d0")
    assert of is not None and of.price is not None
    expected = 0.0
    for round_ in range(6):
        chosen = choose(of, supply(200), round_=round_)
        spent = sum(SIZES[part.group][codec] for (_, part), codec in chosen.items())
        expected = next_price(expected, spent, 150, 0.5)  # the default target and step
        assert of.price.value == expected
    assert expected > 0


def test_survival_decides_between_equal_blocks() -> None:
    of = send_allocation(RadioConfig(allocator="priced", budget_bytes=100), 0, "d0")
    assert of is not None
    for gone, stays in ((OWN, THEIRS), (THEIRS, OWN)):
        chosen = of.choose(SLOTS, frozenset(), 0, supply(100), ALIKE, {gone: 0.5})
        assert {part.block for _, part in chosen} == {stays}


def test_random_choices_depend_on_the_seed_the_device_and_the_round() -> None:
    def drawn(*seed: object, round_: int = 0) -> frozenset[Transfer]:
        return frozenset(choose(SendAllocation("random", *seed), supply(210), round_=round_))

    assert drawn(0, "d0") == drawn(0, "d0")
    for others in ([drawn(s, "d0") for s in range(9)], [drawn(0, "d0", round_=r) for r in range(9)]):
        assert len(set(others)) > 1
