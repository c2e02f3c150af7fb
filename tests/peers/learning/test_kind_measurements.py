"""Measurements of a bottleneck, compared with autograd and least squares on the features of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from peers.learning.kfac import _factors
from peers.learning.learner import Learner
from peers.lora.adapted_model import OWN as ADAPTER
from peers.lora.layout import ModuleShape
from peers.tasks.encode import IGNORED
from peers.unlearning.handover_refit import RIDGE, handover_refit
from tests.support.learners import OTHERS, OWN, joined

KIND = "bottleneck-gelu"


@pytest.fixture(scope="module")
def learner() -> Learner:
    found = joined(adapter={"kind": KIND})
    found._place(())
    return found


@contextmanager
def features(learner: Learner, shape: ModuleShape) -> Iterator[list[Tensor]]:
    """The inputs of the own B in the model, [n, T, r], of each forward pass."""
    found: list[Tensor] = []
    up = learner._adapter.model.base_model.model.get_submodule(shape.name).lora_B[ADAPTER]
    handle = up.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
    yield found
    handle.remove()


def test_the_importance_for_ewc_is_the_mean_square_of_the_gradients(learner: Learner) -> None:
    """Of single examples, each with its share of the batch's mean over tokens."""
    adapter, data = learner._adapter, learner._local._data
    found = learner._measurement.elastic_weights(learner.block(OWN), {}, 0).importance
    answered = (data.wanted() != IGNORED).sum(dim=1)
    expected = {group: torch.zeros_like(values) for group, values in found.items()}
    for row in range(len(data)):
        for gradient in adapter.gradients.values():
            gradient.zero_()
        adapter.loss(data.rows(torch.tensor([row]))).backward()
        weight = float(len(data) * answered[row] / answered.sum())
        for group, gradient in adapter.gradients.items():
            expected[group] += (weight * gradient).square() / len(data)
    for group, values in found.items():
        assert values.abs().max() > 0
        torch.testing.assert_close(values, expected[group], rtol=1e-3, atol=1e-9)


def test_the_right_factor_of_kfac_is_the_second_moment_of_the_features(learner: Learner) -> None:
    data, shape = learner._local._data, learner.layout.modules[0]
    with features(learner, shape) as seen:
        _, right = _factors(learner._adapter.model, learner.layout, learner.block(OWN), [data])
    z = seen[0][data.counted(seen[0].shape[1])].double()
    assert torch.allclose(right[shape.name], z.T @ z, rtol=1e-4)


def test_a_refit_is_ridge_regression_on_the_features(learner: Learner) -> None:
    """The targets are the outputs of the deleted block, as the model adds them."""
    model, data, shape = learner._adapter.model, learner._local._data, learner.layout.modules[0]
    own, gone = learner.block(OWN), learner.block(OTHERS[1])
    module, inputs = model.base_model.model.get_submodule(shape.name), list[Tensor]()
    handle = module.register_forward_hook(lambda _, args, __: inputs.append(args[0].detach()))
    with features(learner, shape) as seen:
        found = handover_refit(model, learner.layout, own, gone, [data])
    handle.remove()
    counted = data.counted(inputs[0].shape[1])
    z, scale = seen[0][counted].double(), learner._adapter.scale
    wanted = learner._blocks.output(shape.name, inputs[0][counted], [OTHERS[1]]).double() / scale
    ridge = RIDGE * (z.T @ z).trace() / z.shape[1]
    stacked = torch.cat([z, ridge.sqrt() * torch.eye(z.shape[1], dtype=torch.float64)])
    target = torch.cat([wanted, torch.zeros(z.shape[1], wanted.shape[1], dtype=torch.float64)])
    best = torch.linalg.lstsq(stacked, target).solution.T
    rows = learner.layout.slices(shape.group)[shape.name]
    assert best.abs().max() > 1e-3
    assert torch.allclose(found[shape.group][rows].double(), best, atol=1e-5)
