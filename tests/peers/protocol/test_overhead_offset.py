"""The bytes of measurements are saved on data."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from coordinator_free.identifiers import BlockKey, Part
from peers.protocol.overhead_offset import OverheadOffset

SIZES = {"early": {"fp16": 100, "int8": 60, "int4": 35}, "late": {"fp16": 500, "int8": 260, "int4": 140}}
OWN, THEIRS = BlockKey("d0", 0), BlockKey("d1", 0)
PRIORITY = {"early": 0.7, "late": 0.3}


def offset(codec: str = "fp16") -> OverheadOffset:
    return OverheadOffset(codec, lambda group, asked=None: SIZES[group][asked or codec])


def copies(count: int = 4) -> dict[Part, int]:
    return {Part(key, group): count for key in (OWN, THEIRS) for group in SIZES}


def test_without_a_debt_no_codec_changes() -> None:
    assert offset().codecs(copies(), PRIORITY) == {}


def test_groups_of_lowest_priority_take_the_coarser_codec_until_the_debt_is_covered() -> None:
    debt = offset()
    debt.add_overhead(1000)
    assert debt.codecs(copies(), PRIORITY) == dict.fromkeys([Part(OWN, "late"), Part(THEIRS, "late")], "int8")
    assert debt.codecs(copies(), PRIORITY) == {}  # 2 x 4 x 240 bytes were saved


def test_a_debt_that_one_round_cannot_cover_is_carried_over() -> None:
    debt = offset()
    debt.add_overhead(3000)
    assert len(debt.codecs(copies(), PRIORITY)) == 4  # 2240
    assert len(debt.codecs(copies(), PRIORITY)) == 1
    assert debt.codecs(copies(), PRIORITY) == {}


def test_int8_becomes_int4_and_int4_stays() -> None:
    for codec, coarser in (("int8", {"int4"}), ("int4", set())):
        debt = offset(codec)
        debt.add_overhead(1)
        assert {*debt.codecs(copies(), PRIORITY).values()} == coarser


def test_the_blocks_of_a_group_take_turns() -> None:
    debt, paid = offset(), []
    for _ in range(4):
        debt.add_overhead(900)  # less than the 960 of one block
        paid.append(next(iter(debt.codecs(copies(), PRIORITY))).block)
    assert {OWN, THEIRS} == {*paid}


@given(
    st.lists(st.integers(0, 5000), max_size=12),
    st.dictionaries(st.sampled_from(sorted(copies())), st.integers(1, 5), min_size=1),
)
def test_over_many_rounds_the_bytes_saved_equal_the_bytes_spent(
    spent: list[int], sent: Mapping[Part, int]
) -> None:
    debt, saved = offset(), 0
    gains = {p: count * (SIZES[p.group]["fp16"] - SIZES[p.group]["int8"]) for p, count in sent.items()}
    for size in spent:
        debt.add_overhead(size)
        saved += sum(gains[part] for part in debt.codecs(sent, PRIORITY))
    while codecs := debt.codecs(sent, PRIORITY):
        saved += sum(gains[part] for part in codecs)
    assert sum(spent) <= saved < sum(spent) + max(gains.values())
