"""Gradients with differential privacy: clipping, noise and samples, without the package of the account."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from peers.learning.backward_pass import Pass
from peers.learning.learner import Learner
from peers.learning.private_gradients import PrivateGradients, clipped_sums
from tests.support.learners import OWN, joined
from tests.support.small_images import images_learner
from tests.support.tiny_models import Family

SMALL_NOISE = 1e-12


def private(
    family: Family = "llama", kind: str = "lora", **privacy: object
) -> tuple[Learner, PrivateGradients]:
    """A learner whose sample is all of its data, in two passes."""
    learner = joined(
        family,
        adapter={"kind": kind},
        privacy={"noise": SMALL_NOISE, **privacy},
        data={"batch": 3},
        train={"micro_batch": 2},
    )
    learner._place(())
    found = learner._local._private
    assert found is not None
    return learner, found


def one_by_one(learner: Learner, clip: float) -> tuple[dict[str, Tensor], float]:
    """The mean of the clipped gradients and of the losses, from one backward pass for each example."""
    local, count = learner._local, len(learner._local._data)
    total = {group: torch.zeros_like(g) for group, g in learner._adapter.gradients.items()}
    loss = 0.0
    for row in range(count):
        for gradient in learner._adapter.gradients.values():
            gradient.zero_()
        loss += local._backward(local._data.rows(torch.tensor([row]))) / count
        norm = math.sqrt(sum(float(g.square().sum()) for g in learner._adapter.gradients.values()))
        for group, gradient in learner._adapter.gradients.items():
            total[group] += gradient * min(1.0, clip / norm) / count
    return total, loss


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "lora"), ("gpt2", "lora"), ("llama", "bottleneck-gelu")]
)  # Linear, Conv1D
@pytest.mark.parametrize("clip", [0.05, 1e3])  # every gradient is longer, and none
def test_each_example_is_clipped_as_in_a_loop_over_single_examples(
    family: Family, kind: str, clip: float
) -> None:
    learner, gradients = private(family, kind, clip=clip)
    expected, mean = one_by_one(learner, clip)
    loss = gradients.step(learner.block(OWN), 0)  # all examples: the batch is as large as the data
    assert loss == pytest.approx(mean, rel=1e-5)
    for group, gradient in learner._adapter.gradients.items():
        torch.testing.assert_close(gradient, expected[group], rtol=1e-4, atol=1e-7)
    norm = math.sqrt(sum(float(g.square().sum()) for g in learner._adapter.gradients.values()))
    assert norm < clip * 1.001


def test_convolutions_are_clipped_as_in_a_loop_over_single_images(tmp_path: Path) -> None:
    privacy = {"noise": SMALL_NOISE, "clip": 0.05}
    learner = images_learner(tmp_path, privacy=privacy, data={"kind": "images", "images": 16, "batch": 16})
    learner._place(())
    expected, _ = one_by_one(learner, 0.05)
    gradients = learner._local._private
    assert gradients is not None and learner.own is not None
    gradients.step(learner.block(learner.own), 0)
    for group, gradient in learner._adapter.gradients.items():
        torch.testing.assert_close(gradient, expected[group], rtol=1e-3, atol=1e-6)


def test_the_noise_has_the_deviation_sigma_c_over_the_expected_size_of_the_sample() -> None:
    learner, gradients = private(noise=40.0, clip=0.05)
    gradients.step(learner.block(OWN), 0)
    numbers = torch.cat([g.flatten() for g in learner._adapter.gradients.values()])
    deviation = 40.0 * 0.05 / 3
    assert float(numbers.std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * len(numbers)))
    assert abs(float(numbers.mean())) < 4 * deviation / math.sqrt(len(numbers)) + 0.05 / len(numbers)


def test_a_step_draws_each_example_alone_and_its_stream_has_its_number() -> None:
    learner, gradients = private()
    gradients.account.rate = 0.5
    found = [gradients.step(learner.block(OWN), number) for number in range(24)]
    assert any(math.isnan(loss) for loss in found)  # an eighth of the samples is empty
    assert len({loss for loss in found if not math.isnan(loss)}) > 3  # of the 7 other subsets of 3 examples
    again = [gradients.step(learner.block(OWN), number) for number in range(3)]
    assert str(again) == str(found[:3])


def test_secret_randomness_is_no_function_of_the_seed() -> None:
    learner, gradients = private(noise=1.0, randomness="secret")
    drawn = []
    for _ in range(2):
        gradients.step(learner.block(OWN), 0)
        drawn.append({group: g.clone() for group, g in learner._adapter.gradients.items()})
    assert not any(drawn[0][group].equal(drawn[1][group]) for group in drawn[0])


def test_an_example_without_a_finite_gradient_adds_nothing() -> None:
    learner, _ = private()
    block, shapes = learner.block(OWN), learner.layout.modules
    draw = torch.Generator().manual_seed(0)
    made = {s.name: (torch.randn(2, 4, s.in_features, generator=draw), s.out_features) for s in shapes}
    passes = {name: Pass(x, torch.randn(2, 4, k, generator=draw)) for name, (x, k) in made.items()}
    alone = clipped_sums({n: Pass(p.x[:1], p.d[:1]) for n, p in passes.items()}, block, 1.0, 0.1)
    passes[shapes[0].name].d[1, 0, 0] = math.inf
    for name, total in clipped_sums(passes, block, 1.0, 0.1).items():
        torch.testing.assert_close(total, alone[name])


def test_a_loss_that_is_not_finite_does_not_end_a_private_step() -> None:
    learner, gradients = private(noise=1.0)
    for values in learner.block(OWN).data.values():
        values.detach().fill_(math.nan)
    assert math.isnan(gradients.step(learner.block(OWN), 0))
    assert all(bool(g.isfinite().all()) for g in learner._adapter.gradients.values())


def test_without_privacy_there_is_no_account() -> None:
    learner = joined()
    assert learner._local._private is None
    assert learner.train(0, 1, rehearse=False).epsilon is None
