"""The identities of method 3 for every kind of adapter, on the outputs of random sets of blocks."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coordinator_free.identifiers import BlockKey
from peers.adapter_config import AdapterConfig
from peers.errors import InputError
from peers.lora.adapted_model import FactorHooks
from peers.lora.bases import Bases, Recipe
from peers.lora.blocks import BlockSet
from peers.lora.convolution import inputs_of, low_rank, outputs_of
from peers.lora.fingerprint import Fingerprint
from peers.lora.kinds import KINDS
from peers.lora.layout import ModuleShape

SLOTS, RANK, SCALE = 6, 3, 4.0
LINEAR, WIDE = ModuleShape("m.0.q", 20, 10, "early", RANK), ModuleShape("m.1.down", 40, 6, "late", RANK)
CONV = ModuleShape("m.2.conv", 2 * 3 * 3, 5, "late", RANK, kernel=(3, 3))
names = st.sampled_from(sorted(KINDS))
seeds = st.integers(0, 2**30)
counts = st.integers(1, SLOTS)
quick = settings(max_examples=20, deadline=None)
torch.set_num_threads(1)


def recipe(kind: str, seed: int = 0, mode: str = "orthogonal") -> Recipe:
    modules = (LINEAR, WIDE) if KINDS[kind].gated else (LINEAR, WIDE, CONV)  # PEFT's VeRA has no Conv2d
    return Recipe(seed, mode, SCALE, SLOTS, "m", "0" * 64, modules, kind=kind)


def key(i: int) -> BlockKey:
    return BlockKey(f"d{i}", 0)


def filled(kind: str, seed: int, owners: list[int]) -> BlockSet:
    """Blocks of these owners, each on the slot of its number. A block's values depend on its owner alone."""
    union = BlockSet(Bases(recipe(kind, seed)))
    for i in owners:
        draw = torch.Generator().manual_seed(seed * 100 + i)
        for values in union.add(key(i), i).data.values():
            values.copy_(torch.randn(values.shape, generator=draw))
    return union


def outputs(union: BlockSet, seed: int) -> dict[str, Tensor]:
    """The outputs of all modules for some random inputs."""
    draw = torch.Generator().manual_seed(seed)
    widths = {m.name: m.in_features for m in union.layout.modules}
    return {name: union.output(name, torch.randn(5, d, generator=draw)) for name, d in widths.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.allclose(a[name], b[name], atol=1e-4, rtol=1e-4) for name in a)


@quick
@given(kind=names, seed=seeds, count=counts, data=st.data())
def test_a_block_is_read_out_of_the_outputs_of_all(kind: str, seed: int, count: int, data: st.DataObject):
    union, i = filled(kind, seed, list(range(count))), data.draw(st.integers(0, count - 1))
    for module in union.layout.by_name:
        expected = SCALE * union.part(key(i), module)
        assert torch.allclose(union.read_out(key(i), module), expected, atol=1e-3, rtol=1e-3)


@quick
@given(kind=names, seed=seeds, count=counts, data=st.data())
def test_a_deletion_leaves_the_model_that_never_had_the_block(
    kind: str, seed: int, count: int, data: st.DataObject
):
    union, gone = filled(kind, seed, list(range(count))), data.draw(st.integers(0, count - 1))
    union.delete(key(gone))
    never = filled(kind, seed, [i for i in range(count) if i != gone])
    found, expected = outputs(union, seed), outputs(never, seed)
    assert all(torch.equal(found[name], expected[name]) for name in found)


@quick
@given(kind=names, seed=seeds, count=st.integers(0, SLOTS - 1))
def test_a_join_changes_no_output_and_its_deletion_restores_all(kind: str, seed: int, count: int):
    union = filled(kind, seed, list(range(count)))
    before = outputs(union, seed)
    union.add(key(count), count)
    joined = outputs(union, seed)
    for values in union[key(count)].data.values():
        values.fill_(1.0)
    moved = outputs(union, seed)
    union.delete(key(count))
    after = outputs(union, seed)
    assert all(torch.equal(before[n], joined[n]) and torch.equal(before[n], after[n]) for n in before)
    assert not all(torch.allclose(before[n], moved[n]) for n in before)


@quick
@given(kind=names, seed=seeds, count=counts, share=st.floats(0, 1))
def test_mixing_is_linear_in_the_outputs_and_commutes_with_deletion(
    kind: str, seed: int, count: int, share: float
):
    """B <- w B + (1 - w) B' of each block: the outputs mix in the same way."""
    owners = list(range(count))
    one, other, mixed = (filled(kind, seed, owners) for _ in range(3))
    draw = torch.Generator().manual_seed(seed)
    for i in owners:
        for group, values in other[key(i)].data.items():
            values.copy_(torch.randn(values.shape, generator=draw))
            mixed.set(key(i), group, share * one[key(i)].data[group] + (1 - share) * values)
    for left in (count, count - 1):
        for union in (one, other, mixed) if left < count else ():
            union.delete(key(left))
        first, second = outputs(one, seed), outputs(other, seed)
        between = {name: share * first[name] + (1 - share) * second[name] for name in first}
        assert equal(outputs(mixed, seed), between)


@quick
@given(kind=names, seed=seeds, order=st.permutations(range(4)), gone=st.permutations(range(4)))
def test_the_order_of_joins_and_deletions_changes_nothing(
    kind: str, seed: int, order: list[int], gone: list[int]
):
    union, plain = filled(kind, seed, order), filled(kind, seed, list(range(4)))
    for i, j in zip(gone[:2], sorted(gone[:2]), strict=True):
        union.delete(key(i))
        plain.delete(key(j))
    found, expected = outputs(union, seed), outputs(plain, seed)
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("kind", [name for name, kind in sorted(KINDS.items()) if kind.dense])
def test_the_norm_of_a_block_is_that_of_its_dense_matrix(kind: str) -> None:
    """The allocators value a change of a block by the norm of the trained matrix."""
    union = filled(kind, 0, [0, 1])
    for module in union.layout.by_name:
        norm = float(union.part(key(1), module).norm())
        assert float(union.delta(module, [key(1)]).norm()) == pytest.approx(SCALE * norm, rel=1e-4)


@quick
@given(kind=names, seed=seeds, count=counts)
def test_the_gradient_of_a_block_is_that_of_its_own_features(kind: str, seed: int, count: int):
    """dL/dB = s sum_t d_t phi(x_t)^T, in the outputs of all blocks: no other block has a part in it."""
    union = filled(kind, seed, list(range(count)))
    module = nn.Linear(LINEAR.in_features, LINEAR.out_features, bias=False)
    for i in range(count):
        for values in union[key(i)].data.values():
            values.requires_grad_()
    hooks = FactorHooks({LINEAR.name: module}, union.layout, SCALE)
    hooks.add(LINEAR, [union[key(i)] for i in range(count)], apart=True)
    x, d = torch.randn(7, LINEAR.in_features), torch.randn(7, LINEAR.out_features)
    module(x).backward(d)
    for i in range(count):
        block, a = union[key(i)], union[key(i)].bases[LINEAR.name]
        sigma = KINDS[kind].sigma
        expected = SCALE * d.T @ (x @ a if sigma is None else sigma(x @ a))
        if block.ups:
            expected = (expected * block.ups[LINEAR.name]).sum(dim=1, keepdim=True)
        found = block.data[LINEAR.group].grad
        assert found is not None
        rows = union.layout.slices(LINEAR.group)[LINEAR.name]
        assert torch.allclose(found[rows], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", [name for name, kind in sorted(KINDS.items()) if not kind.gated])
def test_a_convolution_is_the_same_map_on_its_patches(kind: str) -> None:
    union = filled(kind, 0, [0, 1])
    module = nn.Conv2d(2, 5, 3, padding=1, bias=False)
    x = torch.randn(2, 2, 4, 4)
    a = torch.cat([union[key(i)].bases[CONV.name] for i in (0, 1)], dim=1)
    b = SCALE * torch.cat([union.factor(key(i), CONV.name) for i in (0, 1)], dim=1)
    found = outputs_of(low_rank(module, x, a, b, KINDS[kind])).flatten(0, 1)
    expected = union.output(CONV.name, inputs_of(module, x).flatten(0, 1))
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_bases_of_slots_are_orthonormal_in_every_module(kind: str) -> None:
    bases = Bases(recipe(kind))
    for module in bases.recipe.modules:
        a = torch.cat([bases.basis(module.name, slot) for slot in range(SLOTS)], dim=1)
        assert torch.allclose(a.T @ a, torch.eye(SLOTS * RANK), atol=1e-5)


def test_a_scenario_can_name_every_kind() -> None:
    assert set(get_args(AdapterConfig.model_fields["kind"].annotation)) == set(KINDS)
    for kind in KINDS.values():
        assert kind.sigma is None or float(kind.sigma(torch.zeros(()))) == 0.0  # the read-out needs it


def test_a_recipe_keeps_its_kind_and_that_of_lora_has_no_new_field() -> None:
    for kind in KINDS:
        assert Recipe.from_dict(recipe(kind).to_dict()) == recipe(kind)
    lora = recipe("lora")
    assert "kind" not in lora.to_dict()
    assert "adapter.kind" not in Fingerprint.make(Bases(lora)).recipe
    for wrong in ("other", ["lora"]):
        with pytest.raises(InputError, match="recipe: "):
            Recipe.from_dict({**lora.to_dict(), "kind": wrong})


def test_peers_of_different_kinds_refuse_each_other() -> None:
    lora, relu, gelu = (
        Fingerprint.make(Bases(recipe(kind))) for kind in ("lora", "bottleneck-relu", "bottleneck-gelu")
    )
    assert relu.difference(gelu) == "adapter.kind: bottleneck-relu here, bottleneck-gelu there"
    assert lora.difference(gelu) == "adapter.kind: lora here, bottleneck-gelu there"
    assert gelu.difference(lora) == "adapter.kind: bottleneck-gelu here, lora there"


def test_the_fingerprint_of_vera_has_numbers_of_its_frozen_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another library may draw another P_u from the same seed."""
    bases = Bases(recipe("vera"))
    here, ups = Fingerprint.make(bases), bases.ups
    assert Fingerprint.make(bases).difference(here) is None
    monkeypatch.setattr(bases, "ups", lambda slot: {name: up.flip(0) for name, up in ups(slot).items()})
    assert "same recipe, but numbers differ" in (Fingerprint.make(bases).difference(here) or "")


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ((LINEAR, ModuleShape("m.1.down", 24, 6, "late", RANK)), "24 is 4 more than .* = 18 or more"),
        ((LINEAR, WIDE, CONV), "with the convolution 'm.2.conv'; allowed: Linear"),
    ],
)
def test_vera_refuses_modules_that_cannot_share_its_bases(
    modules: tuple[ModuleShape, ...], message: str
) -> None:
    with pytest.raises(InputError, match=f"adapter.kind: 'vera' .*{message}"):
        Bases(Recipe(0, "orthogonal", SCALE, SLOTS, "m", "0" * 64, modules, kind="vera"))
