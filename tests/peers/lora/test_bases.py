"""Layouts, bases and the fingerprints that peers compare."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peers.errors import InputError
from peers.lora.bases import Bases, Recipe
from peers.lora.fingerprint import Fingerprint
from peers.lora.layout import ModelLayout, ModuleShape
from tests.support.learners import small_config, small_learner, small_loaded
from transport.wire.messages import Envelope, Hello
from transport.wire.packing import pack, unpack


def recipe(d: int = 32, rank: int = 4, slots: int = 8, mode: str = "orthogonal", seed: int = 0) -> Recipe:
    modules = tuple(ModuleShape(f"layers.{i}.q", d, 16, "early", rank) for i in range(2))
    return Recipe(seed, mode, 4.0, slots, "m", "0" * 64, modules)


def tower(layers: int) -> nn.Module:
    return nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4) for _ in range(layers)])})


def groups(model: nn.Module, targets: list[str]) -> list[str]:
    return [m.group for m in ModelLayout.from_model(model, targets, 1).modules]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(1, "m"), (2, "el"), (3, "eml"), (4, "emml"), (6, "eemmll"), (12, "eeeemmmmllll")],
)
def test_groups_are_thirds_of_the_depth(layers, expected):
    found = groups(tower(layers), [f"layers.{i}" for i in range(layers)])
    assert "".join(group[0] for group in found) == expected


def test_modules_without_a_number_take_their_group_from_the_order():
    plain = nn.Sequential()
    for name in ("first", "second", "third"):
        plain.add_module(name, nn.Linear(2, 2))
    assert groups(plain, ["first", "second", "third"]) == ["early", "mid", "late"]
    headed = tower(3)
    headed.add_module("head", nn.Linear(4, 9))
    assert groups(headed, ["layers.0", "layers.1", "layers.2", "head"])[-1] == "late"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_slices_tile_the_rows_of_a_group(family):
    loaded = small_loaded(family)
    layout = ModelLayout.from_model(loaded.model, loaded.target_modules, {"early": 1, "mid": 2, "late": 3})
    for group in layout.groups:
        ends = [0, *(s.stop for s in layout.slices(group).values())]
        assert [s.start for s in layout.slices(group).values()] == ends[:-1]
        assert layout.zeros()[group].shape == (ends[-1], layout.rank(group))


def test_conv1d_has_inputs_and_outputs_the_right_way_round():
    layout = ModelLayout.from_model(small_loaded("gpt2").model, ["c_attn"], 1)
    assert {(m.in_features, m.out_features, m.conv1d) for m in layout.modules} == {(32, 96, True)}


@pytest.mark.parametrize(
    ("rank", "said"),
    [
        ({"early": 1, "mid": 1, "last": 1}, "'last'; allowed: early, mid, late"),
        ({"early": 1}, "lacks group 'mid'"),
    ],
)
def test_ranks_by_group_are_checked(rank, said):
    with pytest.raises(InputError, match=said):
        ModelLayout.from_model(tower(3), ["layers.0", "layers.1", "layers.2"], rank)


def test_modules_that_cannot_be_adapted_are_refused():
    with pytest.raises(InputError, match="is a Embedding; allowed: Linear, Conv1D and Conv2d"):
        ModelLayout.from_model(small_loaded().model, ["embed_tokens"], 1)
    with pytest.raises(InputError, match="no module is named nothing"):
        ModelLayout.from_model(small_loaded().model, ["nothing"], 1)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**40), rank=st.integers(1, 4), slots=st.integers(1, 8))
def test_all_slots_together_are_orthonormal(seed, rank, slots):
    bases = Bases(recipe(rank=rank, slots=slots, seed=seed))
    for module in ("layers.0.q", "layers.1.q"):
        stacked = torch.cat([bases.basis(module, s) for s in range(slots)], dim=1)
        assert torch.allclose(stacked.T @ stacked, torch.eye(rank * slots), atol=1e-6, rtol=0)


def test_more_slots_do_not_change_earlier_slots():
    few, many = Bases(recipe(slots=2)), Bases(recipe(slots=8))
    for slot in range(2):
        assert torch.allclose(few.basis("layers.0.q", slot), many.basis("layers.0.q", slot), atol=1e-6)


def test_modules_and_seeds_have_bases_of_their_own():
    bases = Bases(recipe())
    assert torch.equal(bases.basis("layers.0.q", 3), Bases(recipe()).basis("layers.0.q", 3))
    assert not torch.allclose(bases.basis("layers.0.q", 3), bases.basis("layers.1.q", 3), atol=0.1)
    other = Bases(recipe(seed=1))
    assert not torch.allclose(bases.basis("layers.0.q", 3), other.basis("layers.0.q", 3), atol=0.1)


def test_independent_bases_overlap_by_r_squared_over_d():
    bases = Bases(recipe(d=64, rank=4, slots=60, mode="independent"))
    drawn = torch.cat([bases.basis("layers.0.q", s) for s in range(60)], dim=1)
    squares = (drawn.T @ drawn).square().reshape(60, 4, 60, 4).sum(dim=(1, 3))
    assert torch.allclose(squares.diagonal(), torch.full((60,), 4.0), atol=1e-5)
    overlaps = squares[~torch.eye(60, dtype=torch.bool)]
    assert float(overlaps.mean()) == pytest.approx(4 * 4 / 64, rel=0.1)


def test_slots_that_do_not_fit_are_refused_with_the_largest_fit():
    with pytest.raises(InputError) as refused:
        Bases(recipe(d=32, rank=8, slots=5))
    said = str(refused.value)
    for part in (
        "adapter.rank",
        "adapter.max_devices",
        "'layers.0.q'",
        "d = 32",
        "5 slots of r = 8",
        "r = 6",
    ):
        assert part in said
    assert "with r = 8 it is 4 slots" in said
    with pytest.raises(InputError, match="no slot 8; 8 slots: 0 to 7"):
        Bases(recipe()).basis("layers.0.q", 8)


def test_a_recipe_round_trips_through_json_and_refuses_unknown_fields():
    made = recipe()
    assert Recipe.from_dict(made.to_dict()) == made
    for wrong in ({"algorithm": "hadamard/7"}, {"seed": "0"}, {"mode": "x"}, {"max_devices": 0}, {"more": 1}):
        with pytest.raises(InputError, match="recipe"):
            Recipe.from_dict({**made.to_dict(), **wrong})
    broken = {**made.to_dict(), "modules": [{"name": "q"}]}
    with pytest.raises(InputError, match="not complete"):
        Recipe.from_dict(broken)


def fingerprint(**changes) -> Fingerprint:
    return Fingerprint.make(Bases(replace(recipe(), **changes)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed: 0 here, 1 there"),
        ({"scale": 2.0}, "adapter.scale: 4.0 here, 2.0 there"),
        ({"max_devices": 4}, "adapter.max_devices: 8 here, 4 there"),
        ({"mode": "independent"}, "adapter.bases: orthogonal here, independent there"),
        ({"model_sha256": "1" * 64}, "base model: 000000000000… here, 111111111111… there"),
    ],
)
def test_a_fingerprint_names_the_differences(changes, said):
    assert fingerprint().difference(fingerprint(**changes)) == said


def test_a_fingerprint_names_the_modules_that_differ():
    wider = tuple(replace(m, rank=2) for m in recipe().modules)
    said = fingerprint().difference(fingerprint(modules=wider))
    assert said == "modules: 2 x q 32->16 early r=4 here, 2 x q 32->16 early r=2 there"


def test_only_differences_beyond_the_last_bits_count():
    made = fingerprint()
    assert made.difference(replace(made, sketch=tuple(x + 1e-8 for x in made.sketch))) is None
    for off in (1e-3, float("nan")):
        said = made.difference(replace(made, sketch=(*made.sketch[:-1], made.sketch[-1] + off)))
        assert said is not None and "numbers differ" in said
    assert made.difference(fingerprint(model_name="elsewhere")) is None


def test_a_fingerprint_of_a_large_model_fits_into_a_hello():
    shapes = [("q_proj", 4096, 4096), ("down_proj", 11008, 4096), ("up_proj", 4096, 11008)]
    modules = tuple(
        ModuleShape(f"model.layers.{i}.{name}", d, k, ("early", "mid", "late")[i * 3 // 32], 2)
        for i in range(32)
        for name, d, k in shapes
    )
    sent = fingerprint(modules=modules, max_devices=2).to_dict()
    frames = pack(Envelope("d0", 0), Hello("tcp://a:1", sent, False, [], 0))
    hello = unpack(frames)[1]
    assert isinstance(hello, Hello)
    assert len(msgpack.packb(sent)) < 2000
    assert Fingerprint.from_dict(hello.fingerprint).difference(Fingerprint.from_dict(sent)) is None


@pytest.mark.parametrize(
    "hostile", [{}, {"recipe": []}, {"recipe": {}, "shapes": 3}, {"recipe": {"a": None}}]
)
def test_a_malformed_fingerprint_is_a_difference(hostile):
    assert "fingerprint: no" in (small_learner().difference(hostile) or "")


def test_the_same_scenario_gives_the_same_fingerprint():
    a, b = small_learner(), small_learner(device="d1")
    assert a.difference(b.fingerprint.to_dict()) is None
    assert a.fingerprint.sha256 == b.fingerprint.sha256
    assert "seed" in (a.difference(small_learner(seed=3).fingerprint.to_dict()) or "")
    with pytest.raises(InputError, match=r"adapter\.rank"):
        Recipe.make(small_loaded(), small_config(adapter={"rank": {"top": 1}}))
