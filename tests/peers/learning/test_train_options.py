"""Micro-batches, checkpointing, the schedule of the learning rate, and a base in bf16."""

from __future__ import annotations

import math

import pytest
import torch

from peers.config import TrainConfig
from peers.errors import InputError
from peers.learning.backward_pass import passes
from peers.learning.learning_rate import factor
from peers.lora.adapted_model import _checkpoint_layers
from tests.support.learners import OWN, block, joined, small_loaded


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    whole, parts = joined(data={"batch": 3}), joined(data={"batch": 3}, train={"micro_batch": 2})
    losses = [learner.train(0, 1, rehearse=False).loss for learner in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for group, gradient in whole._adapter.gradients.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(parts._adapter.gradients[group], gradient, rtol=1e-4, atol=1e-6)


def test_checkpointing_recomputes_the_layers_and_gives_the_same_gradients():
    plain, saving = joined(), joined(train={"checkpointing": True})
    layer = saving._adapter.model.base_model.model.model.layers[0]
    calls = []
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    plain.train(0, 2, rehearse=False)
    saving.train(0, 2, rehearse=False)
    assert len(calls) == 4  # a forward and a backward pass for each of 2 steps
    assert not layer.mlp.training  # dropout stays off
    for group, values in block(plain, OWN).items():
        torch.testing.assert_close(block(saving, OWN)[group], values)


def test_a_measurement_sees_the_same_gradients_with_checkpointing():
    plain, saving = joined(), joined(train={"checkpointing": True})
    found = [passes(m._adapter.model, m.layout, m._local._data) for m in (plain, saving)]
    for name, one in found[0].items():
        torch.testing.assert_close(found[1][name].d, one.d)


def test_checkpointing_is_refused_by_a_model_that_cannot():
    model = small_loaded().model
    type(model).supports_gradient_checkpointing, before = False, type(model).supports_gradient_checkpointing
    try:
        with pytest.raises(InputError, match=r"train\.checkpointing.*LlamaForCausalLM.*allowed: false"):
            _checkpoint_layers(model)
    finally:
        type(model).supports_gradient_checkpointing = before


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [("constant", [1, 1, 1]), ("linear", [1, 0.5, 0.1]), ("cosine", [1, 0.5, 0.02447])],
)
def test_a_schedule_falls_with_the_rounds(schedule, shares):
    train = TrainConfig(schedule=schedule)
    assert [factor(train, 100, 0, r, 0, 5) for r in (0, 50, 90)] == pytest.approx(shares, abs=1e-5)


def test_a_warm_up_rises_over_the_first_rounds_of_the_own_block():
    train = TrainConfig(warmup_rounds=2)
    assert [factor(train, 100, 30, 30, t, 2) for t in (0, 1)] == [0.25, 0.5]
    assert [factor(train, 100, 30, 31, t, 2) for t in (0, 1, 7)] == [0.75, 1.0, 1.0]
    assert factor(train, 100, 30, 32, 0, 2) == 1.0


def test_the_learning_rate_of_a_step_is_the_schedules():
    learner = joined(train={"lr": 0.01, "schedule": "cosine"}, round={"count": 4})
    before = block(learner, OWN)
    learner.train(2, 1, rehearse=False)  # AdamW's first step moves each number by lr
    moved = max(float((block(learner, OWN)[g] - b).abs().max()) for g, b in before.items())
    assert moved == pytest.approx(0.01 * (1 + math.cos(math.pi / 2)) / 2, rel=1e-3)
