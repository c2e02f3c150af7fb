"""The identities of method 3, on random sets of blocks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.errors import InputError
from peers.lora.bases import Bases, Recipe
from peers.lora.blocks import BlockSet, gram_coordinates, gram_delete, read_out
from peers.lora.layout import ModuleShape

MODULE, D = "layers.0.q", 24
MODULES = (ModuleShape(MODULE, D, 10, "early", 3), ModuleShape("layers.1.q", D, 6, "late", 2))
SEEDS = st.integers(0, 2**30)
quick = settings(max_examples=30)
torch.set_num_threads(1)


def bases(mode: str = "orthogonal", seed: int = 0) -> Bases:
    return Bases(Recipe(seed, mode, 3.0, 8, "m", "0" * 64, MODULES))


def key(i: int) -> BlockKey:
    return BlockKey(f"d{i}", 0)


def random_block(union: BlockSet, draw: torch.Generator) -> dict[str, Tensor]:
    return {g: torch.randn(b.shape, generator=draw) for g, b in union.layout.zeros().items()}


def random_union(seed: int, n: int, mode: str = "orthogonal") -> BlockSet:
    union, draw = BlockSet(bases(mode, seed)), torch.Generator().manual_seed(seed)
    for i in range(n):
        union.add(key(i), i)
        for group, values in random_block(union, draw).items():
            union.set(key(i), group, values)
    return union


def mixed(unions: list[BlockSet], weights: list[float]) -> BlockSet:
    """Block by block: B_u <- sum_j w_j B_u^(j)."""
    union = BlockSet(unions[0]._bases)
    for k in unions[0].keys():  # noqa: SIM118
        union.add(k, unions[0][k].slot)
        for group in union.layout.groups:
            terms = [w * u[k].data[group] for u, w in zip(unions, weights, strict=True)]
            union.set(k, group, sum(terms[1:], terms[0]))
    return union


def close(a: Tensor, b: Tensor, atol: float = 1e-4) -> bool:
    return torch.allclose(a, b, atol=atol, rtol=1e-4)


def test_a_key_prints_and_is_read():
    assert str(BlockKey("d5", 2)) == "d5@2"
    assert BlockKey.parse("a@b@3") == BlockKey("a@b", 3)
    for wrong in ("d5", "@1", "d5@", "d5@-1", "d5@x"):
        with pytest.raises(ValueError, match="is no block"):
            BlockKey.parse(wrong)


@quick
@given(seed=SEEDS, n=st.integers(1, 8), shares=st.lists(st.floats(0, 1), min_size=2, max_size=4))
def test_read_out_after_mixing_is_the_mixed_contribution(seed, n, shares):
    unions = [random_union(seed, n) for _ in shares]
    draw = torch.Generator().manual_seed(seed + 1)
    for union in unions[1:]:
        for group, values in random_block(union, draw).items():
            union.set(key(0), group, values)
    union = mixed(unions, shares)
    for i in range(n):
        c = read_out(union.delta(MODULE), union[key(i)].bases[MODULE])
        assert close(c, union.scale * union.part(key(i), MODULE))


@quick
@given(seed=SEEDS, n=st.integers(2, 8), data=st.data())
def test_deletion_equals_the_sum_over_the_other_blocks_and_the_projection(seed, n, data):
    union, u = random_union(seed, n), key(data.draw(st.integers(0, n - 1)))
    others = [k for k in union.keys() if k != u]  # noqa: SIM118
    before, expected, a = union.delta(MODULE), union.delta(MODULE, others), union[u].bases[MODULE]
    union.delete(u)
    assert torch.equal(union.delta(MODULE), expected)
    assert close(before - before @ a @ a.T, expected)
    assert u not in union


@quick
@given(seed=SEEDS, n=st.integers(2, 6), share=st.floats(0, 1))
def test_deletion_commutes_with_mixing(seed, n, share):
    a, b = random_union(seed, n), random_union(seed, n)
    for group, values in random_block(b, torch.Generator().manual_seed(seed + 1)).items():
        b.set(key(1), group, values)
    deleted_last = mixed([a, b], [share, 1 - share])
    deleted_last.delete(key(0))
    a.delete(key(0))
    b.delete(key(0))
    deleted_first = mixed([a, b], [share, 1 - share])
    assert torch.equal(deleted_first.delta(MODULE), deleted_last.delta(MODULE))


@quick
@given(seed=SEEDS, n=st.integers(0, 7))
def test_a_join_changes_nothing_and_its_deletion_restores_all(seed, n):
    union = random_union(seed, n)
    before, held = union.delta(MODULE), union.tensors(union.keys())
    union.add(key(n), n)
    assert torch.equal(union.delta(MODULE), before)
    union.set(key(n), "early", torch.ones(10, 3))
    union.delete(key(n))
    after = union.tensors(union.keys())
    assert held.keys() == after.keys() and all(torch.equal(held[k], after[k]) for k in held)


@quick
@given(seed=SEEDS, n=st.integers(2, 8), data=st.data())
def test_gram_deletion_is_exact_for_overlapping_bases(seed, n, data):
    union, u = random_union(seed, n, "independent"), data.draw(st.integers(0, n - 1))
    stack = [union[k].bases[MODULE] for k in union.keys()]  # noqa: SIM118
    gram = torch.cat(stack, 1).double()
    if float(torch.linalg.eigvalsh(gram.T @ gram)[0]) < 1e-3:
        return  # so close to singular that float32 bases decide the last digits
    expected = union.delta(MODULE, [k for k in union.keys() if k != key(u)])  # noqa: SIM118
    assert close(gram_delete(union.delta(MODULE), stack, u), expected, atol=1e-2)
    found = gram_coordinates(union.delta(MODULE), stack)[u].float()
    assert close(found, union.scale * union.part(key(u), MODULE), atol=1e-2)


def test_the_plain_projector_harms_survivors_where_bases_overlap():
    harms, exact = [], []
    for seed in range(30):
        union = random_union(seed, 2, "independent")
        stack = [union[key(i)].bases[MODULE] for i in range(2)]
        dw, kept = union.delta(MODULE), union.delta(MODULE, [key(1)])
        harms.append(float((dw - dw @ stack[0] @ stack[0].T - kept).norm() / kept.norm()))
        exact.append(float((gram_delete(dw, stack, 0) - kept).norm() / kept.norm()))
    assert sum(harms) / len(harms) == pytest.approx(math.sqrt(3 / D), rel=0.2)
    assert max(exact) < 1e-5


def test_gram_refuses_blocks_that_share_a_basis():
    many = bases("independent")
    with pytest.raises(InputError, match=r"9 blocks have 27 columns .* d = 24.*N\*r <= d"):
        gram_coordinates(torch.zeros(10, D), [many.basis(MODULE, i % 8) for i in range(9)])
    with pytest.raises(InputError, match="share a basis"):
        gram_coordinates(torch.zeros(10, D), [many.basis(MODULE, 1), many.basis(MODULE, 1)])


def test_norms_equal_the_norms_of_the_contribution():
    union = random_union(0, 2)
    a = union[key(1)].bases[MODULE]
    assert union.norms()["d1@0"]["early"] == pytest.approx(
        float(read_out(union.delta(MODULE), a).norm()), rel=1e-5
    )


def test_wrong_use_is_an_error():
    union = random_union(0, 1)
    with pytest.raises(ValueError, match="held already"):
        union.add(key(0), 1)
    with pytest.raises(ValueError, match=r"d0@0/early: \(1, 1\) where \(10, 3\)"):
        union.set(key(0), "early", torch.zeros(1, 1))
    with pytest.raises(KeyError):
        union.delete(key(5))
    with pytest.raises(InputError, match="no slot 8"):
        union.add(key(1), 8)
