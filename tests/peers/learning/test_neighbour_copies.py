"""The assumed copies of neighbours: the last matrix sent to or by each, until its block is deleted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coordinator_free.identifiers import BlockKey, Part
from peers.learning.neighbour_copies import NeighbourCopies
from transport.wire.tensor_codec import decode, encode, peak2

PART, OTHER = Part(BlockKey("d0", 0), "early"), Part(BlockKey("d1", 0), "early")


def matrix(seed: int) -> Tensor:
    return torch.randn(64, 4, generator=torch.Generator().manual_seed(seed))


def apart2(copies: NeighbourCopies, mine: Tensor, peer: str = "d1", part: Part = PART) -> float:
    return copies.distances({part: mine}).apart2[peer, part]


def norm2(values: Tensor) -> float:
    return float(values.square().sum())


def test_an_unknown_neighbour_has_no_distance() -> None:
    found = NeighbourCopies().distances({PART: matrix(0)})
    assert not found.apart2
    measured = found.matrices[PART]
    assert measured.norm2 == pytest.approx(norm2(matrix(0))) and measured.values == 256
    assert measured.peak2 == peak2(matrix(0))


def test_the_last_matrix_sent_or_received_is_the_copy() -> None:
    copies, mine = NeighbourCopies(), matrix(0)
    copies.store_copy("d1", PART, matrix(1))
    assert apart2(copies, mine) == pytest.approx(norm2(mine - matrix(1)))
    copies.store_copy("d1", PART, mine)
    assert apart2(copies, mine) == 0.0


def test_the_error_of_a_coarse_codec_remains_as_distance() -> None:
    copies, mine = NeighbourCopies(), matrix(0)
    there = decode(encode(mine, "int4"), "int4", 64, 4)
    copies.store_copy("d1", PART, there)
    assert apart2(copies, mine) == pytest.approx(norm2(mine - there)) and norm2(mine - there) > 0


def test_each_neighbour_has_copies_of_its_own() -> None:
    copies, mine = NeighbourCopies(), matrix(0)
    copies.store_copy("d1", PART, mine)
    copies.store_copy("d2", PART, matrix(1))
    assert apart2(copies, mine, "d1") == 0.0 < apart2(copies, mine, "d2")


def test_a_deletion_deletes_all_copies_of_the_block() -> None:
    copies = NeighbourCopies()
    for peer in ("d1", "d2"):
        for part in (PART, OTHER):
            copies.store_copy(peer, part, matrix(0))
    copies.drop_block(PART.block)
    assert {part for held in copies._theirs.values() for part in held} == {OTHER}


def test_copies_of_a_departed_neighbour_are_deleted() -> None:
    copies = NeighbourCopies()
    copies.store_copy("d1", PART, matrix(0))
    copies.store_copy("d2", PART, matrix(0))
    copies.forget_neighbour("d1")
    assert set(copies.distances({PART: matrix(0)}).apart2) == {("d2", PART)}


def test_a_block_that_is_not_held_is_not_measured() -> None:
    copies = NeighbourCopies()
    copies.store_copy("d1", OTHER, matrix(0))
    assert not copies.distances({PART: matrix(0)}).apart2
