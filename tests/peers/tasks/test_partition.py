"""Partitions of a pool, sizes, held-out shares and devices without examples."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.config import DataConfig
from peers.errors import InputError
from peers.tasks import Example
from peers.tasks.partition import deal, split_held_out
from peers.tasks.shards import Shards

DEVICES = ("d0", "d1", "d2")
POOL = [Example(f"{label} {i}", "x", label=label) for i in range(40) for label in ("a", "b", "c")]


def own(device: str) -> list[Example]:
    return POOL[DEVICES.index(device) :: 3]


@given(st.sampled_from(["iid", "by-label", "dirichlet:0.1", "dirichlet:100"]), st.integers(0, 99))
def test_every_example_goes_to_one_device(kind, seed):
    dealt = deal(POOL, DEVICES, kind, seed)
    assert Counter(e for some in dealt.values() for e in some) == Counter(POOL)
    assert dealt == deal(POOL, DEVICES, kind, seed)


def test_by_label_gives_each_device_few_labels():
    dealt = deal(POOL, DEVICES, "by-label", 0)
    assert [len({e.label for e in some}) for some in dealt.values()] == [1, 1, 1]
    assert dealt != deal(POOL, DEVICES, "by-label", 1)


def test_a_small_alpha_concentrates_a_label():
    def largest(alpha: str) -> float:
        counts = [Counter(e.label for e in some) for some in deal(POOL, DEVICES, alpha, 3).values()]
        return sum(max(c[label] for c in counts) for label in "abc") / len(POOL)

    assert largest("dirichlet:0.05") > 0.8 > 0.45 > largest("dirichlet:1000")


@pytest.mark.parametrize("alpha", [0.5, 4.0])
def test_dirichlet_draws_the_shares_of_the_devices_with_all_parameters_alpha(alpha):
    labels, each = 300, 100
    pool = [Example(f"{n}", "x", label=str(n % labels)) for n in range(labels * each)]
    dealt = deal(pool, DEVICES, f"dirichlet:{alpha}", 0)
    counts = Counter(e.label for e in dealt["d1"])
    shares = np.array([counts[str(label)] / each for label in range(labels)])
    mean = 1 / len(DEVICES)
    assert shares.mean() == pytest.approx(mean, abs=0.05)
    assert shares.var() == pytest.approx(mean * (1 - mean) / (len(DEVICES) * alpha + 1), rel=0.2)


def test_dirichlet_needs_an_alpha_above_0():
    with pytest.raises(InputError, match=r"data\.partition: 'dirichlet:0\.0'; allowed: a number above 0"):
        deal(POOL, DEVICES, "dirichlet:0.0", 0)


@pytest.mark.parametrize("kind", ["own", "iid", "by-label"])
def test_held_out_examples_are_trained_by_nobody(kind):
    shards = Shards(DataConfig(partition=kind, held_out=0.25), 0, own)
    held = shards.held_out(DEVICES)
    trained = [e for d in DEVICES for e in shards.train(d, DEVICES)]
    assert len(held) == 30 and len(trained) == 90
    assert Counter(held + trained) == Counter(POOL)
    assert split_held_out(POOL, 0.0, 1) == (POOL, [])


def test_a_device_gets_as_many_examples_as_its_size():
    shards = Shards(DataConfig(sizes={"d1": 5}), 0, own)
    assert [len(shards.train(d, DEVICES)) for d in DEVICES] == [40, 5, 40]
    assert shards.train("d1", DEVICES) == own("d1")[:5]


def test_a_device_without_examples_is_an_error_or_a_listener():
    with pytest.raises(InputError, match=r"data: d1 has no examples; allowed: .*data.empty = 'listen'"):
        Shards(DataConfig(sizes={"d1": 0}), 0, own).train("d1", DEVICES)
    assert Shards(DataConfig(sizes={"d1": 0}, empty="listen"), 0, own).train("d1", DEVICES) == []


def test_a_partition_by_label_needs_labels():
    with pytest.raises(InputError, match=r"data\.partition: 'by-label' needs labelled data, and 'p' has no"):
        deal([Example("p", "r")], DEVICES, "by-label", 0)
