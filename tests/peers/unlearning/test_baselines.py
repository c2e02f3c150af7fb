"""The baselines' decisions and steps, against values computed by hand or by autograd."""

from __future__ import annotations

import pytest
import torch

from peers.tasks.encode import IGNORED
from peers.unlearning.ewc import ElasticWeights
from peers.unlearning.federaser import History, calibrated
from peers.unlearning.influence import clipped, influence_move, kronecker_factors
from peers.unlearning.kd_unlearn import distillation_loss
from tests.support.learners import OWN, fill, joined, small_config


def test_the_pull_of_ewc_is_the_gradient_of_its_penalty() -> None:
    weights, anchor = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])
    values = torch.tensor([[1.5, 1.0]], requires_grad=True)
    (0.5 * 3.0 * (weights * (values - anchor).square()).sum()).backward()
    ewc = ElasticWeights({"early": weights}, {"early": anchor}, 3.0)
    assert values.grad is not None
    assert torch.allclose(ewc.pull("early", values.detach()), values.grad)
    assert ewc.stored_bytes == 16


def test_the_importance_is_the_mean_squared_gradient_of_the_examples() -> None:
    learner = joined(correction={"ewc": 2.0})
    data, adapter = learner._local._data, learner._adapter
    learner.set_anchor()
    learner._place(())
    found = learner._measurement.elastic_weights(learner.block(OWN), learner._local.anchor, 0)
    wanted = {group: torch.zeros_like(values) for group, values in adapter.gradients.items()}
    # The measurement knows the loss of the batch: the mean over its answered tokens.
    tokens = (data.wanted() != IGNORED).sum(dim=1)
    for i in range(len(data)):
        for values in adapter.gradients.values():
            values.zero_()
        loss = adapter.loss(data.rows(torch.tensor([i]))) * tokens[i] * len(data) / tokens.sum()
        loss.backward()
        for group, values in adapter.gradients.items():
            wanted[group] += values.square() / len(data)
    for group, values in wanted.items():
        assert torch.allclose(found.importance[group], values, rtol=1e-3, atol=1e-7)


def test_ewc_holds_the_own_block_near_its_anchor() -> None:
    moved = {}
    for strength in (0.0, 1e6):
        learner = joined(correction={"ewc": strength}, train={"lr": 1e-3})
        learner.set_anchor()
        learner.train(0, 8, rehearse=False)
        assert (learner._local.ewc is not None) == bool(strength)
        moved[strength] = sum(learner.own_move().values())
    assert moved[1e6] < 0.7 * moved[0.0]


def test_a_block_that_begins_at_the_event_is_not_held() -> None:
    learner = joined(correction={"ewc": 1e6})
    fill(learner, OWN, 0, size=0.0)
    learner.set_anchor()
    learner.train(0, 1, rehearse=False)
    assert learner._local.ewc is None
    assert small_config().correction.ewc == 0.0


def test_an_influence_step_is_exact_for_a_quadratic_loss() -> None:
    """Linear regression with one output and unit residual curvature: removing data by one Newton step."""
    draw = torch.Generator().manual_seed(0)
    z, y = torch.randn(40, 3, generator=draw).double(), torch.randn(40, generator=draw).double()
    everything = torch.linalg.lstsq(z, y).solution
    gradient = ((z[30:] @ everything - y[30:])[:, None] * z[30:]).mean(dim=0)
    survivors = z[:30].T @ z[:30] / 30
    move = influence_move(gradient[None].float(), torch.ones(1, 1), survivors.float(), 10 / 30)
    without = torch.linalg.lstsq(z[:30], y[:30]).solution
    before, after = (everything - without).norm(), (everything + move[0].double() - without).norm()
    assert after < 0.05 * before


def test_the_factors_are_means_without_padding() -> None:
    x, d = torch.randn(2, 3, 4), torch.randn(2, 3, 5)
    counted = torch.tensor([[True, True, False], [True, False, False]])
    basis = torch.linalg.qr(torch.randn(4, 2))[0]
    left, right = kronecker_factors(x @ basis, d, counted, 2.0)
    z = 2.0 * torch.stack([x[0, 0], x[0, 1], x[1, 0]]) @ basis
    rows = 2 * torch.stack([d[0, 0], d[0, 1], d[1, 0]])
    assert torch.allclose(right.float(), z.T @ z / 3, atol=1e-5)
    assert torch.allclose(left.float(), rows.T @ rows / 2, atol=1e-5)


def test_a_long_move_is_clipped() -> None:
    assert clipped(torch.tensor([3.0, 4.0]), 10.0).tolist() == [3.0, 4.0]
    assert clipped(torch.tensor([3.0, 4.0]), 1.0).tolist() == pytest.approx([0.6, 0.8])


def test_distillation_is_zero_for_the_base_model_and_ignores_positions_without_a_class() -> None:
    base = torch.randn(2, 3, 5)
    wanted = torch.tensor([[1, IGNORED, 2], [IGNORED, 0, 4]])
    assert float(distillation_loss(base, base, wanted)) == pytest.approx(0.0, abs=1e-6)
    model = torch.randn(2, 3, 5)
    found = float(distillation_loss(model, base, wanted))
    p, q = base.softmax(-1), model.softmax(-1)
    kl = (p * (p / q).log()).sum(-1)[wanted != IGNORED].mean()
    assert found == pytest.approx(float(kl), rel=1e-4)


def test_a_history_stores_every_second_round_and_counts_its_bytes() -> None:
    history = History(2)
    for round_ in range(5):
        history.keep(round_, {"early": torch.full((4, 2), float(round_))})
    assert [float(moves["early"][0, 0]) for moves in history.rounds] == [0.0, 2.0, 4.0]
    assert history.stored_bytes == 3 * 8 * 4


def test_a_calibrated_move_has_the_stored_length_and_the_new_direction() -> None:
    found = calibrated(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]))
    assert found.tolist() == [0.0, 5.0]
    assert calibrated(torch.ones(2), torch.zeros(2)).tolist() == [0.0, 0.0]
