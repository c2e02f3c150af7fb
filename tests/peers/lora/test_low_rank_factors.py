"""Foreign blocks of large modules stay low-rank factors, and their base weights stay shared."""

from __future__ import annotations

import pytest
import torch

from peers.lora import adapted_model
from peers.lora.adapted_model import Adapter, keeps_factors
from peers.lora.blocks import Block
from peers.lora.layout import ModuleShape
from tests.support.learners import fill, joined, logits, small_data, small_loaded
from tests.support.tiny_models import Family


def test_factors_are_for_large_weights_and_few_columns() -> None:
    square = ModuleShape("q", 576, 576, "early", 8)
    assert keeps_factors(square, 3 * 8) and keeps_factors(square, 9 * 8)
    assert not keeps_factors(square, 10 * 8)  # R (d + k) is more than a quarter of d k
    assert not keeps_factors(ModuleShape("q", 128, 256, "early", 8), 8)  # the largest of `tiny`: it is folded


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors in modules of every size."""
    monkeypatch.setattr(adapted_model, "LARGE", 0)
    monkeypatch.setattr(adapted_model, "SHARE", 0)


def adapter_of(family: Family) -> tuple[Adapter, list[Block]]:
    """An adapter with its own block, and two foreign ones that are not placed."""
    learner = joined(family)
    adapter = learner._adapter
    adapter.clear()
    return adapter, [learner.block(key) for key in learner.held() if key != learner.own]


def loss_and_gradients(adapter: Adapter) -> tuple[float, list[torch.Tensor]]:
    for gradient in adapter.gradients.values():
        gradient.zero_()
    loss = adapter.loss(small_data(small_loaded()))
    loss.backward()
    return float(loss.detach()), [gradient.clone() for gradient in adapter.gradients.values()]


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # of gpt2: Conv1D, and a head that shares its weight
def test_factors_compute_what_folded_weights_compute(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, foreign = adapter_of(family)
    without = logits(adapter.model)
    adapter.place(foreign)
    folded, (loss, gradients) = logits(adapter.model), loss_and_gradients(adapter)
    monkeypatch.setattr(adapted_model, "LARGE", 0)
    monkeypatch.setattr(adapted_model, "SHARE", 0)
    adapter.place(foreign)
    base = {name: module.weight.data_ptr() for name, module in adapter._dense._modules.items()}
    assert base == {name: weight.data_ptr() for name, weight in adapter._dense._base.items()}
    assert torch.allclose(logits(adapter.model), folded, atol=1e-5)
    assert not torch.allclose(folded, without, atol=1e-3)
    found, others = loss_and_gradients(adapter)
    assert found == pytest.approx(loss, rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gradients, others, strict=True))


def test_a_model_may_have_both(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, foreign = adapter_of("llama")
    adapter.place(foreign)
    folded = logits(adapter.model)
    monkeypatch.setattr(adapted_model, "LARGE", 33 * 32)  # down_proj: 48 x 32
    monkeypatch.setattr(adapted_model, "SHARE", 0)
    adapter.place(foreign)
    own = {n for n, m in adapter._dense._modules.items() if m.weight is not adapter._dense._base[n]}
    assert own and all("down_proj" not in name for name in own)
    assert torch.allclose(logits(adapter.model), folded, atol=1e-5)
    adapter.clear()
    assert all(m.weight is adapter._dense._base[n] for n, m in adapter._dense._modules.items())


def test_training_with_factors_moves_the_block_as_with_folded_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved = []
    for share in (1 << 30, 0):
        monkeypatch.setattr(adapted_model, "LARGE", 0)
        monkeypatch.setattr(adapted_model, "SHARE", share)
        learner = joined()
        for number in range(3):
            learner.train(number, 2, rehearse=False)
            for key in learner.held():
                if key != learner.own:
                    fill(learner, key, seed=number)  # a received copy: the factors are made anew
        assert learner.own is not None
        moved.append([learner.read(learner.own, group) for group in learner.groups])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*moved, strict=True))


@pytest.mark.usefixtures("always")
def test_a_deletion_overwrites_the_factors() -> None:
    learner = joined()
    assert learner.model is not None  # places the foreign blocks
    factors = list(learner._adapter._hooks.factors)
    assert factors and all(bool(factor.any()) for factor in factors)
    gone = next(key for key in learner.held() if key != learner.own)
    learner.delete_block(gone)
    assert not any(bool(factor.any()) for factor in factors) and not learner._adapter._hooks.factors


@pytest.mark.parametrize("large", [0, 1_500])  # factors in all modules, or in those with more numbers
@pytest.mark.parametrize("erase", [False, True])
def test_the_base_weights_outlive_factors(erase: bool, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with factors has the base weight itself, so a deletion must not overwrite it."""
    monkeypatch.setattr(adapted_model, "LARGE", large)
    monkeypatch.setattr(adapted_model, "SHARE", 0)
    adapter, foreign = adapter_of("llama")
    before = logits(adapter.model)
    adapter.place(foreign)
    assert not torch.equal(logits(adapter.model), before)
    adapter.clear(erase=erase)
    assert torch.equal(logits(adapter.model), before)
