"""The consensus error, from one snapshot at a time."""

from __future__ import annotations

import pytest
import torch

from emulation.analysis.consensus_error import ConsensusErrors, RunningSpread


def test_equals_the_formula() -> None:
    copies = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spread = RunningSpread()
    for copy in copies:
        spread.add_vector({"d0@0/early": copy[:4], "d1@0/early": copy[4:]})
    mean = copies.mean(dim=0)
    expected = ((copies - mean).square().sum(dim=(1, 2)).mean().sqrt() / mean.norm()).item()
    assert spread.error() == pytest.approx(expected)


def test_equal_copies_have_exactly_zero_error() -> None:
    spread = RunningSpread()
    for _ in range(6):
        spread.add_vector({"d0@0/early": torch.full((3, 2), 0.1)})
    assert spread.error() == 0.0


@pytest.mark.parametrize("first", [True, False])
def test_a_missing_block_counts_as_zero(first: bool) -> None:
    both = {"a": torch.ones(2, 2), "b": torch.ones(2, 2)}
    one = {"a": torch.ones(2, 2)}
    spread, filled = RunningSpread(), RunningSpread()
    for vector in (one, both) if first else (both, one):
        spread.add_vector(vector)
        filled.add_vector({"b": torch.zeros(2, 2), **vector})
    assert spread.error() == pytest.approx(filled.error())


def test_an_untrained_block_has_no_error() -> None:
    spread = RunningSpread()
    spread.add_vector({"a": torch.zeros(2, 2)})
    assert spread.error() is None


def test_a_round_is_closed_once_two_evaluations_old() -> None:
    consensus, vector = ConsensusErrors(every=5), {"a": torch.ones(1, 1)}
    assert consensus.add_snapshot(4, vector) == {}
    assert consensus.add_snapshot(9, vector) == {}
    assert consensus.add_snapshot(14, vector) == {4: 0.0}
    assert consensus.add_snapshot(4, vector) == {}  # too late
    assert consensus.close_all() == {9: 0.0, 14: 0.0}
