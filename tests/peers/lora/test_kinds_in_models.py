"""Each kind of adapter in a model: as the own block, as foreign blocks, in snapshots and in training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, VeraConfig, get_peft_model

from peers.errors import InputError
from peers.learning.diagnosis import Options
from peers.learning.learner import Learner
from peers.lora.activations import taps
from peers.lora.convolution import outputs_of
from peers.storage.snapshots import SnapshotModel
from tests.support.learners import (
    OTHERS,
    OWN,
    block,
    joined,
    logits,
    same,
    small_config,
    small_data,
    small_loaded,
)
from tests.support.small_images import images_learner, small_classifier
from tests.support.tiny_models import Family

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",  # PEFT 0.21, transformers 5.23
    "ignore:fan_in_fan_out is set to:UserWarning",  # GPT-2 mixes Conv1D and Linear
    "ignore:Model has `tie_word_embeddings=True`:UserWarning",
)
OTHER_KINDS = ["bottleneck-gelu", "vera"]  # test_kinds.py has all functions
SIZES = {"rank": 2, "max_devices": 8}


def learner_of(kind: str, family: Family = "llama", **sections: object) -> Learner:
    return joined(family, adapter={"kind": kind}, **sections)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_every_module_gets_the_sum_over_the_blocks(kind: str, family: Family) -> None:
    """The own block acts through PEFT, the others through hooks or folded weights."""
    learner = learner_of(kind, family)
    model, layout = learner.model, learner.layout
    with taps(model, layout) as seen, torch.no_grad():
        logits(model)
    for shape in layout.modules:
        tap, base = seen[shape.name], small_loaded(family).model.get_submodule(shape.name)
        x = tap.x.flatten(0, 1)
        added = learner._blocks.output(shape.name, x)
        assert torch.allclose(tap.y.flatten(0, 1), base(x) + added, atol=1e-4)
        assert added.abs().max() > 1e-3


def test_a_bottleneck_acts_in_convolutions_too(tmp_path: Path) -> None:
    adapter = {"rank": 2, "max_devices": 4, "kind": "bottleneck-silu"}
    learner = images_learner(tmp_path, adapter=adapter)
    inputs = learner._local._data.inputs()
    base = small_classifier(tmp_path).model
    with taps(learner.model, learner.layout) as seen, torch.no_grad():
        learner.model(**inputs)
    for shape in learner.layout.modules:
        tap = seen[shape.name]
        x, weight = tap.x.flatten(0, 1), base.get_submodule(shape.name).weight.flatten(1)
        bias = getattr(base.get_submodule(shape.name), "bias", None)
        expected = x @ weight.T + learner._blocks.output(shape.name, x) + (0 if bias is None else bias)
        assert torch.allclose(outputs_of(tap.y).flatten(0, 1), expected, atol=1e-3)


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_own_and_foreign_blocks_act_alike(kind: str) -> None:
    learner = learner_of(kind)
    adapter, blocks = learner._adapter, [learner.block(key) for key in learner.held()]
    split = logits(learner.model)
    for apart in (False, True):
        adapter.attach(None)
        adapter.place(blocks, apart)
        assert torch.allclose(split, logits(adapter.model), atol=1e-5)
    adapter.clear(erase=True)
    assert torch.equal(logits(adapter.model), logits(small_loaded().model))


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_training_moves_the_own_block_alone(kind: str) -> None:
    learner = learner_of(kind)
    before = {key: block(learner, key) for key in learner.held()}
    losses = [learner.train(number, 3, rehearse=True).loss for number in range(6)]
    assert losses[-1] < losses[0]
    assert not any(torch.equal(before[OWN][g], learner.read(OWN, g)) for g in learner.groups)
    assert all(same(before[key], block(learner, key)) for key in OTHERS)


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_leaking_gradients_reach_the_foreign_blocks(kind: str) -> None:
    learner = learner_of(kind, isolation={"leak": 0.5})
    before = {key: block(learner, key) for key in learner.held()}
    learner.train(0, 1, rehearse=False)
    assert not any(same(before[key], block(learner, key)) for key in learner.held())


@pytest.mark.parametrize("kind", ["lora", *OTHER_KINDS])
def test_a_step_on_the_model_is_a_step_on_the_block(kind: str) -> None:
    learner = learner_of(kind)
    adapter = learner._adapter
    adapter.loss(small_data(small_loaded())).backward()
    trained = [p for p in learner.model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(b.numel() for b in learner.block(OWN).data.values())
    expected = sum(float(g.square().sum()) for g in adapter.gradients.values())
    assert sum(float(p.grad.square().sum()) for p in trained) == pytest.approx(expected)
    for values in learner.block(OWN).data.values():
        values.fill_(7.0)
    assert all(bool((p == 7.0).all()) for p in trained)


@pytest.mark.parametrize("kind", ["lora", *OTHER_KINDS])
def test_a_deletion_leaves_the_model_that_never_had_the_block(kind: str) -> None:
    """Also the model of a learner that never held it, to the last bit."""
    learner, never = learner_of(kind), learner_of(kind)
    never.delete_block(OTHERS[0])
    assert learner.model is not None  # the block was in the model
    learner.delete_block(OTHERS[0])
    assert torch.equal(logits(learner.model), logits(never.model))
    learner.delete_block(OTHERS[1])
    learner.delete_block(OWN)
    assert torch.equal(logits(learner.model), logits(small_loaded().model))


@pytest.mark.parametrize("kind", ["lora", *OTHER_KINDS])
def test_a_snapshot_shows_the_model(kind: str, tmp_path: Path) -> None:
    learner = learner_of(kind)
    evaluated = SnapshotModel(small_loaded(), small_config(adapter={"kind": kind}))
    for number, gone in enumerate((None, *OTHERS, OWN)):
        if gone is not None:
            learner.delete_block(gone)
        path = tmp_path / f"{number}.safetensors"
        learner.snapshot(path, {})
        evaluated.load(path)
        assert torch.allclose(logits(evaluated.model), logits(learner.model), atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "bottleneck-gelu"])
def test_a_diagnosis_gives_the_gradient_of_the_own_block(kind: str) -> None:
    learner = learner_of(kind)
    found = learner.diagnose(0, 16, Options())
    adapter = learner._adapter
    batch = learner._measurement._batch("diagnosis", 0)[0]
    assert learner.model is not None
    for gradient in adapter.gradients.values():
        gradient.zero_()
    adapter.loss(batch).backward()
    for group, measured in found.groups.items():
        assert measured.blocks[OWN] == pytest.approx(float(adapter.gradients[group].square().sum()), rel=1e-3)


def test_vera_is_refused_by_measurements_of_a_matrix_b() -> None:
    learner = learner_of("vera")
    with pytest.raises(InputError, match="'vera' has no trained B for a diagnosis; allowed: another kind"):
        learner.diagnose(0, 16, Options())
    with pytest.raises(InputError, match="'vera' has no trained B for a handover refit"):
        learner.delete_block(OTHERS[0], refit=0.25)
    assert learner.held() == [OWN, *OTHERS]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_vera_is_the_vera_of_peft_with_one_adapter_for_each_owner(family: Family) -> None:
    """vera_A and vera_B are shared. The frozen lambda_d of an owner is 0 outside its slot."""
    learner = learner_of("vera", family)
    slots, rank, scale = SIZES["max_devices"], SIZES["rank"], learner._recipe.scale
    base = small_loaded(family).model
    names = [m.name for m in learner.layout.modules]
    config = VeraConfig(r=slots * rank, target_modules=names)
    model = get_peft_model(base, config, adapter_name=str(OWN)).eval()
    for key in OTHERS:
        model.add_adapter(str(key), VeraConfig(r=slots * rank, target_modules=names))
    model.base_model.set_adapter([str(key) for key in learner.held()])
    shared = learner._blocks._bases._shared
    assert shared is not None
    widest, tallest = model.base_model.vera_A[str(OWN)].shape[1], model.base_model.vera_B[str(OWN)].shape[0]
    for slot, key in enumerate((OWN, *OTHERS)):
        columns = slice(slot * rank, (slot + 1) * rank)
        for owner in (OWN, *OTHERS):  # the same matrices for all
            model.base_model.vera_A[str(owner)][columns] = torch.from_numpy(
                shared.stack()[:widest, columns].T
            )
            model.base_model.vera_B[str(owner)][:, columns] = torch.from_numpy(shared.up(tallest, slot))
        for shape in learner.layout.modules:
            layer = model.base_model.model.get_submodule(shape.name)
            with torch.no_grad():
                layer.vera_lambda_d[str(key)].zero_()[columns] = shared.share(shape.in_features)
                layer.vera_lambda_b[str(key)].copy_(scale * learner._blocks.part(key, shape.name)[:, 0])
    assert isinstance(model, PeftModel)
    assert torch.allclose(logits(model), logits(learner.model), atol=1e-5)
    assert not torch.allclose(logits(learner.model), logits(small_loaded(family).model), atol=1e-3)
