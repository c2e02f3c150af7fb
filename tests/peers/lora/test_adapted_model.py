"""The own block in PEFT, the foreign blocks folded or apart."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from coordinator_free.identifiers import BlockKey
from peers.lora.adapted_model import Adapter, DenseWeights
from peers.lora.bases import Bases, Recipe
from peers.lora.blocks import Block, BlockSet
from peers.models.loader import LoadedModel
from tests.support.learners import fill, joined, logits, small_config, small_loaded
from tests.support.tiny_models import Family

FAMILIES: tuple[Family, ...] = ("llama", "qwen2", "gpt2")
RANKS = {"early": 1, "mid": 2, "late": 3}


def blocks(loaded: LoadedModel, count: int) -> tuple[BlockSet, list[Block]]:
    recipe = Recipe.make(loaded, small_config(adapter={"rank": RANKS}))
    union, draw = BlockSet(Bases(recipe)), torch.Generator().manual_seed(0)
    for i in range(count):
        block = union.add(BlockKey(f"d{i}", 0), i)
        for values in block.data.values():
            values.copy_(0.05 * torch.randn(values.shape, generator=draw))
    return union, [union[key] for key in union.keys()]  # noqa: SIM118


def adapted(family: Family = "llama", count: int = 3) -> tuple[Adapter, list[Block]]:
    loaded = small_loaded(family)
    union, made = blocks(loaded, count)
    return Adapter(loaded.model, union.layout, union.scale), made


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_and_apart_give_equal_logits_that_differ_from_the_base(family):
    adapter, (own, *foreign) = adapted(family)
    base = logits(adapter.model)
    adapter.attach(own)
    alone = logits(adapter.model)
    adapter.place(foreign)
    folded = logits(adapter.model)
    adapter.place(foreign, apart=True)
    apart = logits(adapter.model)
    assert torch.allclose(folded, apart, atol=1e-5)
    assert not torch.allclose(base, alone, atol=1e-3)
    assert not torch.allclose(alone, folded, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_own_and_foreign_blocks_act_alike(family):
    adapter, made = adapted(family)
    adapter.attach(made[0])
    adapter.place(made[1:])
    split = logits(adapter.model)
    adapter.attach(None)
    adapter.place(made)
    assert torch.allclose(split, logits(adapter.model), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folded_weight_is_the_base_plus_delta(family):
    loaded = small_loaded(family)
    union, made = blocks(loaded, 2)
    before = {m.name: loaded.model.get_submodule(m.name).weight.clone() for m in union.layout.modules}
    DenseWeights(loaded.model, union.layout, union.scale).fold(made)
    for shape in union.layout.modules:
        moved = loaded.model.get_submodule(shape.name).weight - before[shape.name]
        moved = moved.T if shape.conv1d else moved
        assert torch.allclose(moved, union.delta(shape.name), atol=1e-6)


@pytest.mark.parametrize("apart", [False, True])
def test_clear_restores_the_base_bit_for_bit(apart):
    adapter, (own, *foreign) = adapted()
    adapter.attach(own)
    before, computed = weights(adapter.model), logits(adapter.model)
    for _ in range(3):
        adapter.place(foreign, apart)
    adapter.clear()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(adapter.model), strict=True))
    assert torch.equal(computed, logits(adapter.model))
    adapter.attach(None)
    assert all(not lora.lora_B["default"].weight.any() for lora in adapter._lora.values())


def test_a_shared_weight_changes_only_in_the_target_module():
    adapter, (_, *foreign) = adapted("gpt2")  # lm_head is a target and shares the embedding's weight
    embedding = adapter.model.get_input_embeddings().weight
    before = embedding.detach().clone()
    adapter.place(foreign)
    head = adapter._lora["lm_head"].base_layer
    assert torch.equal(embedding, before)
    assert not torch.equal(head.weight, before)
    adapter.clear()
    assert head.weight is embedding


def test_low_precision_weights_are_folded_in_float32():
    loaded = small_loaded()
    loaded.model.to(torch.bfloat16)
    union, made = blocks(loaded, 2)
    name = union.layout.modules[0].name
    module = loaded.model.get_submodule(name)
    expected = (module.weight.float() + union.delta(name)).to(torch.bfloat16)
    adapter = Adapter(loaded.model, union.layout, union.scale)
    adapter.attach(made[0])
    adapter.place(made)
    assert torch.equal(module.weight, expected)
    for apart in (False, True):
        adapter.place(made[1:], apart)
        assert logits(adapter.model).isfinite().all()


def lora_a(adapter: Adapter) -> list[torch.Tensor]:
    return [lora.lora_A["default"].weight for lora in adapter._lora.values()]


def test_only_lora_b_trains_and_is_the_block_itself():
    adapter, (own, *_) = adapted()
    adapter.attach(own)
    trained = [n for n, p in adapter.model.named_parameters() if p.requires_grad]
    assert trained and all("lora_B" in name for name in trained)
    name, lora = next(iter(adapter._lora.items()))
    group = next(m.group for m in adapter._layout.modules if m.name == name)
    own.data[group].fill_(7.0)
    assert (lora.lora_B["default"].weight == 7.0).all()
    assert torch.equal(lora.lora_A["default"].weight, own.bases[name].T)
    assert {lora.scaling["default"] for lora in adapter._lora.values()} == {4.0}


def test_peft_thaws_lora_a_and_freeze_undoes_it():
    adapter, (own, *_) = adapted()
    adapter.attach(own)
    adapter.model.set_adapter("default")
    assert all(a.requires_grad for a in lora_a(adapter)), (
        "PEFT has changed: freeze may not be needed any more"
    )
    adapter.freeze()
    assert not any(a.requires_grad for a in lora_a(adapter))


def test_training_refreezes_lora_a_after_set_adapter_and_load_adapter(tmp_path):
    learner = joined()
    learner._adapter.model.save_pretrained(tmp_path)
    before = [a.clone() for a in lora_a(learner._adapter)]
    for thaw in (
        lambda model: model.set_adapter("default"),
        lambda model: model.load_adapter(tmp_path, "second", is_trainable=True),
    ):
        thaw(learner._adapter.model)
        learner.train(0, 2, rehearse=False)
        assert not any(a.requires_grad for a in lora_a(learner._adapter))
    assert all(torch.equal(a, b) for a, b in zip(before, lora_a(learner._adapter), strict=True))


def test_folded_steps_cost_about_a_lora_step(capsys):
    """The ratio is printed, not asserted: times on shared cores vary."""

    def seconds(foreign: int, leak: float) -> float:
        learner = joined(isolation={"leak": leak})
        for key in [k for k in learner._blocks.keys() if k.device != "d0"]:  # noqa: SIM118
            learner.delete_block(key)
        for i in range(1, foreign + 1):
            learner.add_block(BlockKey(f"d{i}", 0), i)
            fill(learner, BlockKey(f"d{i}", 0), seed=i)
        learner.train(0, 2, rehearse=False)
        start = time.perf_counter()
        learner.train(1, 10, rehearse=False)
        return time.perf_counter() - start

    alone, folded, apart = seconds(0, 0.0), seconds(7, 0.0), seconds(7, 1e-6)
    with capsys.disabled():
        print(f"\nstep with 7 foreign blocks / alone: folded {folded / alone:.2f}, apart {apart / alone:.2f}")
