"""Blocks in convolutions: patches, folding, gradients, export to plain PEFT, deletion from an export."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from peers.config import ModelConfig
from peers.errors import InputError
from peers.learning.backward_pass import passes
from peers.learning.diagnosis import Options
from peers.learning.kfac import FisherSteps
from peers.learning.learner import Learner
from peers.lora.activations import taps
from peers.lora.convolution import inputs_of, outputs_of
from peers.lora.layout import ModelLayout
from peers.models.loader import load_model
from peers.unlearning.forget import forget
from peers.unlearning.handover_refit import handover_refit
from tests.support.small_images import KEYS, images_learner


def batch_of(learner: Learner) -> dict[str, Tensor]:
    return learner._local._data.inputs()


def load_adapter(base: Any, folder: Path) -> Any:
    with warnings.catch_warnings():
        # PEFT 0.21 reads a property that transformers 5 calls deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return PeftModel.from_pretrained(base, folder).eval()


@torch.no_grad()
def logits(learner: Learner) -> Tensor:
    return learner.model(**batch_of(learner)).logits.clone()


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0), ((2, 1), (0, 2))])
def test_a_convolution_is_linear_on_its_patches(stride: int, padding: int) -> None:
    module = nn.Conv2d(3, 5, (3, 2), stride=stride, padding=padding, bias=False)
    x = torch.randn(2, 3, 9, 7)
    found = inputs_of(module, x) @ module.weight.flatten(1).T
    assert torch.allclose(found, outputs_of(module(x)), atol=1e-5)


def test_bases_are_orthonormal_over_flattened_patches(tmp_path: Path) -> None:
    learner = images_learner(tmp_path)
    shapes = learner.layout.modules
    assert {m.kernel for m in shapes} == {(7, 7), (3, 3), (1, 1), None}
    for shape in shapes:
        stacked = torch.cat([learner._blocks[key].bases[shape.name] for key in KEYS], dim=1)
        assert stacked.shape == (shape.in_features, 6)
        assert torch.allclose(stacked.T @ stacked, torch.eye(6), atol=1e-5)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_folded_and_apart_blocks_compute_the_same(tmp_path: Path, kind: str) -> None:
    learner = images_learner(tmp_path, kind)  # type: ignore[arg-type]
    folded = logits(learner)
    learner._adapter.place([learner._blocks[key] for key in KEYS[1:]], apart=True)
    assert torch.allclose(logits(learner), folded, atol=1e-4)
    with torch.no_grad():
        apart = learner._adapter.model(**batch_of(learner)).logits
    assert torch.allclose(apart, folded, atol=1e-4)
    learner._adapter.clear()
    without = learner._adapter.model(**batch_of(learner)).logits
    assert not torch.allclose(without, folded, atol=1e-2)


def test_gradients_of_taps_are_those_of_autograd(tmp_path: Path) -> None:
    """dL/dB = s d^T (x A), for every convolution and the head, with the gradient that PEFT's lora_B gets."""
    learner = images_learner(tmp_path)
    model, data = learner.model, learner._local._data
    for values in learner._adapter.gradients.values():
        values.zero_()
    learner._adapter.loss(data).backward()
    for name, (x, d) in passes(model, learner.layout, data).items():
        shape = learner.layout.by_name[name]
        rows = learner.layout.slices(shape.group)[name]
        z = x @ learner._blocks[KEYS[0]].bases[name]
        mine = learner._adapter.scale * torch.einsum("ntk,ntr->kr", d, z)
        assert torch.allclose(learner._adapter.gradients[shape.group][rows], mine, atol=1e-4)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_plain_peft_loads_the_export(tmp_path: Path, kind: str) -> None:
    learner = images_learner(tmp_path / "base", kind)  # type: ignore[arg-type]
    wanted = logits(learner)
    assert learner.export(tmp_path / "adapter") == learner.sha256()
    base = load_model(ModelConfig(name=str(tmp_path / "base"))).model
    loaded = load_adapter(base, tmp_path / "adapter")
    with torch.no_grad():
        found = loaded(**batch_of(learner)).logits
    assert torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("merged", [False, True])
def test_forget_on_a_saved_adapter_equals_the_deletion(tmp_path: Path, merged: bool) -> None:
    learner = images_learner(tmp_path / "base")
    learner.export(tmp_path / "adapter")
    if merged:
        for path in sorted((tmp_path / "adapter" / "blocks").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "adapter" / "blocks").rmdir()
    report = forget(tmp_path / "adapter", "d1", tmp_path / "out")
    assert report.path == ("gram" if merged else "blocks")
    learner.delete_block(KEYS[1])
    base = load_model(ModelConfig(name=str(tmp_path / "base"))).model
    loaded = load_adapter(base, tmp_path / "out")
    with torch.no_grad():
        found = loaded(**batch_of(learner)).logits
    assert torch.allclose(found, logits(learner), atol=1e-3)


def test_a_diagnosis_a_refit_and_fisher_steps_run_on_convolutions(tmp_path: Path) -> None:
    learner = images_learner(tmp_path)
    found = learner.diagnose(0, 64, Options(labels="model"))
    assert found.loss > 0 and all(g.energy > 0 and g.curvature > 0 for g in found.groups.values())
    own, gone, data = learner._blocks[KEYS[0]], learner._blocks[KEYS[1]], learner._local._data
    moves = handover_refit(learner.model, learner.layout, own, gone, [data])
    assert all(move.norm() > 0 for move in moves.values())
    steps = FisherSteps(learner.model, learner.layout, own, [data], 0.0)
    before = {g: b.detach().clone() for g, b in own.data.items()}
    steps.step({g: torch.ones_like(b) for g, b in before.items()}, 1e-3)
    assert all(not torch.equal(own.data[g], b) for g, b in before.items())


def test_training_lowers_the_loss_and_leaves_the_statistics_alone(tmp_path: Path) -> None:
    learner = images_learner(tmp_path, data={"kind": "images", "images": 16, "batch": 16})
    kept = {n: b.clone() for n, b in learner.model.named_buffers()}
    losses = learner.train(0, 12, rehearse=False).losses
    assert losses[-1] < losses[0]
    assert all(torch.equal(b, kept[n]) for n, b in learner.model.named_buffers())


def test_a_narrow_convolution_stays_frozen_and_a_narrow_head_is_refused(tmp_path: Path) -> None:
    learner = images_learner(tmp_path, adapter={"rank": 2, "max_devices": 5})
    names = set(learner.layout.by_name)
    assert "resnet.encoder.stages.1.layers.0.shortcut.convolution" not in names  # d = 8 < 5 slots of r = 2
    assert any(name.startswith("resnet.embedder") for name in names)  # d = 49
    with pytest.raises(InputError, match=r"module 'classifier.1' \(late\) has d = 16"):
        images_learner(tmp_path / "other", adapter={"rank": 4, "max_devices": 5})


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_a_convolution_that_peft_adapts_otherwise_is_refused(module: nn.Conv2d) -> None:
    with pytest.raises(InputError, match="'conv' is a convolution in groups, dilated, or with a padding"):
        ModelLayout.from_model(nn.ModuleDict({"conv": module}), ["conv"], 1)


def test_taps_give_patches_for_every_convolution(tmp_path: Path) -> None:
    learner = images_learner(tmp_path)
    model = learner.model
    with taps(model, learner.layout) as seen, torch.no_grad():
        model(**batch_of(learner))
    for name, tap in seen.items():
        assert tap.x.shape[::2] == (16, learner.layout.by_name[name].in_features)
        assert outputs_of(tap.y).shape[:2] == tap.x.shape[:2]
