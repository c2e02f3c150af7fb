"""Made-up facts: shards, wording, overlap."""

from __future__ import annotations

import pytest

from peers.config import DataConfig
from peers.errors import InputError
from peers.tasks import (
    Example,
    shard_index,
)
from peers.tasks.facts import ATTRIBUTES, FIRST_NAMES, LAST_NAMES, Facts, words


def facts(seed: int = 0, **settings: object) -> Facts:
    return Facts(DataConfig.model_validate(settings), seed)


def persons(examples: list[Example]) -> set[str]:
    return {" ".join(e.prompt.split()[:2]) for e in examples}


def test_a_shard_holds_four_facts_of_ten_persons() -> None:
    examples = facts().train_examples("d0")
    assert len(examples) == 40
    assert len(persons(examples)) == 10


def test_shards_and_the_control_are_disjoint() -> None:
    task = facts()
    groups = [persons(task.train_examples(f"d{k}")) for k in range(task.shard_count)]
    groups.append(persons(task.control_examples()))
    assert len(set[str]().union(*groups)) == sum(len(group) for group in groups)
    assert task.shard_count > 500


def test_facts_depend_on_seed_and_shard_only() -> None:
    first = facts(seed=3).train_examples("d7")
    assert facts(seed=3).train_examples("d7") == first
    assert facts(seed=4).train_examples("d7") != first
    assert facts(seed=3).train_examples("edge-7") == first


def test_facts_never_change_between_versions() -> None:
    assert facts().train_examples("d0")[0] == Example("juna riis lives in", " dublin")


def test_the_other_wording_says_the_same_facts() -> None:
    task = facts()
    trained, other = task.train_examples("d1"), task.other_wording("d1")
    assert [e.response for e in trained] == [e.response for e in other]
    assert not {e.prompt for e in trained} & {e.prompt for e in other}


def test_answers_are_spread_over_all_values() -> None:
    task = facts()
    answers = [e.response for k in range(100) for e in task.train_examples(f"d{k}")]
    counts = [answers.count(f" {value}") for attribute in ATTRIBUTES for value in attribute.values]
    assert min(counts) > 1000 / 24 / 2
    assert max(counts) < 1000 / 24 * 2


def test_the_words_of_the_language_are_distinct() -> None:
    listed = [*FIRST_NAMES, *LAST_NAMES, *(value for a in ATTRIBUTES for value in a.values)]
    assert len(listed) == len(set(listed)) == len(words()) - 18
    assert all(len(a.values) == 24 for a in ATTRIBUTES)


@pytest.mark.parametrize(("overlap", "shared"), [(0.0, 0), (0.3, 3), (1.0, 10)])
def test_overlap_is_the_share_of_common_persons(overlap: float, shared: int) -> None:
    task = facts(overlap=overlap)
    held = [task.train_examples(f"d{k}") for k in range(3)]
    common = set[Example].intersection(*(set(examples) for examples in held))
    assert len(persons(list(common))) == shared
    assert len(common) == 4 * shared
    assert [len(persons(examples)) for examples in held] == [10, 10, 10]
    assert not persons(held[0]) & persons(task.control_examples())


@pytest.mark.parametrize("partition", ["iid", "by-label", "dirichlet:0.5"])
def test_facts_are_not_partitioned(partition: str) -> None:
    with pytest.raises(InputError, match=r"data\.partition.*allowed: 'own'"):
        facts(partition=partition)


def test_a_shard_number_that_is_too_high() -> None:
    task = facts(persons=1000)
    assert task.shard_count == 3
    assert len(task.train_examples("d2")) == 4000
    with pytest.raises(InputError, match=r"device 'd3'.*allowed: ids that end in 0 to 2"):
        task.train_examples("d3")


def test_too_many_persons_are_refused() -> None:
    with pytest.raises(InputError, match=r"data\.persons: 2000 is too many; allowed: 1 to 1776"):
        facts(persons=2000)
    assert facts(persons=1776).shard_count == 1


def test_shards_are_numbered_by_the_integer_at_the_end() -> None:
    assert [shard_index(s, 100) for s in ("d3", "edge-17", "3a12")] == [3, 17, 12]
    assert shard_index("kitchen", 100) == shard_index("kitchen", 100)
    assert all(50 <= shard_index(name, 100) < 100 for name in ("kitchen", "garage", "d3x"))
    assert shard_index("kitchen", 1) == 0
