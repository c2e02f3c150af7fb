"""What neighbours assume of the own copies: what they were sent, moved as they move it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coordinator_free.identifiers import BlockKey, Part
from peers.learning.assumed_copies import AssumedCopies

PART, OTHER = Part(BlockKey("d5", 0), "early"), Part(BlockKey("d6", 0), "early")


def matrix(seed: int) -> Tensor:
    return torch.randn(8, 2, generator=torch.Generator().manual_seed(seed))


def noted(*peers: str, tolerance: float = 0.02) -> AssumedCopies:
    copies, sent = AssumedCopies(tolerance), matrix(0)
    for peer in peers:
        copies.store_copy(peer, PART, sent)
    return copies


def test_a_copy_is_near_within_the_tolerance_of_its_norm() -> None:
    copies = noted("d1")
    assert copies.near(lambda part: 1.019 * matrix(0)) == {("d1", PART): True}
    assert copies.near(lambda part: 1.03 * matrix(0)) == {("d1", PART): False}


def test_a_part_that_is_not_held_or_was_never_sent_is_not_judged() -> None:
    assert noted("d1").near(lambda part: None) == {}
    assert AssumedCopies(0.02).near(lambda part: matrix(0)) == {}


def test_copies_follow_the_owner_once_also_if_neighbours_share_a_payload() -> None:
    copies, owner = noted("d1", "d2", "d3", tolerance=1e-6), matrix(1)
    copies.follow(PART, ("d1", "d2", "d9"), owner, 0.25)
    moved = matrix(0) + 0.25 * (owner - matrix(0))
    assert copies.near(lambda part: moved) == {("d1", PART): True, ("d2", PART): True, ("d3", PART): False}
    assert copies.near(lambda part: matrix(0))["d3", PART]  # it did not get the owner's copy


@pytest.mark.parametrize("drop", [True, False])
def test_nothing_is_assumed_of_a_deleted_block_or_a_peer_that_has_gone(drop: bool) -> None:
    copies, other = noted("d1"), matrix(2)
    copies.store_copy("d1", OTHER, other)
    copies.store_copy("d2", OTHER, matrix(3))
    if drop:
        copies.drop_block(OTHER.block)
        assert not other.any()  # its memory is overwritten
    else:
        copies.forget_neighbour("d1")
    left = {("d1", PART)} if drop else {("d2", OTHER)}
    assert copies.near(lambda part: matrix(0)).keys() == left
