"""Steps in the eigenbasis of the own block's Fisher information."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import peers.learning.kfac
from coordinator_free.correction.policy_interface import GroupAction
from peers.learning.backward_pass import passes
from peers.learning.kfac import FisherSteps, _factors
from peers.learning.learner import Learner
from peers.tasks.encode import IGNORED
from tests.support.learners import OTHERS, OWN, block, joined, same

LR = 0.01


def steps(learner: Learner, weight_decay: float = 0.0) -> FisherSteps:
    learner._place(())
    learner._adapter.freeze()
    model, own = learner._adapter.model, learner._blocks[OWN]
    return FisherSteps(model, learner.layout, own, [learner._local._data], weight_decay)


def gradients(learner: Learner) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {g: torch.randn(b.shape, generator=draw) for g, b in learner._blocks[OWN].data.items()}


@pytest.mark.parametrize("widest", [1024, 1])
def test_the_first_step_is_the_sign_of_the_gradient_in_both_eigenbases(
    widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.learning.kfac, "WIDEST", widest)  # 1: z alone is turned
    learner = joined()
    made, down, before = steps(learner), gradients(learner), block(learner, OWN)
    left, right = _factors(
        learner._adapter.model, learner.layout, learner._blocks[OWN], [learner._local._data]
    )
    made.step(down, LR)
    after = block(learner, OWN)
    for m in learner.layout.modules:
        rows = learner.layout.slices(m.group)[m.name]
        q = torch.linalg.eigh(right[m.name])[1].float()
        p = torch.linalg.eigh(left[m.name])[1].float() if widest > 1 else torch.eye(m.out_features)
        turned = p.T @ down[m.group][rows] @ q
        wanted = before[m.group][rows] - LR * p @ turned.sign() @ q.T
        assert torch.allclose(after[m.group][rows], wanted, atol=1e-5)


def test_the_factors_are_sums_over_the_tokens_of_every_batch_and_not_over_padding() -> None:
    learner = joined()
    learner._place(())
    own, model, data = learner._blocks[OWN], learner._adapter.model, learner._local._data
    seen: list[Tensor] = []
    name = learner.layout.modules[0].name
    hook = model.base_model.model.get_submodule(name).register_forward_hook(
        lambda _, args, __: seen.append(args[0].detach())
    )
    batches = [data.rows(torch.arange(2)), data.rows(torch.tensor([2]))]
    left, right = _factors(model, learner.layout, own, batches)
    hook.remove()
    at_once, _ = _factors(model, learner.layout, own, [data.rows(torch.arange(3))])
    for module, factor in left.items():
        assert torch.allclose(factor, at_once[module], rtol=1e-3, atol=1e-3 * float(factor.abs().max()))
    (x, d) = passes(model, learner.layout, batches[1])[name]
    answered = int((batches[1].wanted() != IGNORED).sum())
    alone, _ = _factors(model, learner.layout, own, batches[1:])
    rows = answered * d[batches[1].counted(d.shape[1])].double()
    assert len(x) == 1 and torch.allclose(alone[name], rows.T @ rows)
    shown = [x[batch.counted(x.shape[1])] for x, batch in zip(seen, batches, strict=True)]
    z = torch.cat(shown) @ own.bases[name]
    assert torch.allclose(right[name].float(), z.T @ z, rtol=1e-4)


def test_only_groups_with_a_gradient_decay() -> None:
    learner = joined()
    made, before = steps(learner, weight_decay=0.5), block(learner, OWN)
    group, *others = learner.groups
    made.step({group: torch.zeros_like(before[group])}, LR)
    after = block(learner, OWN)
    assert torch.allclose(after[group], before[group] * (1 - LR * 0.5))
    assert all(torch.equal(after[other], before[other]) for other in others)


def test_a_device_learns_and_moves_only_its_own_block() -> None:
    learner, plain = joined(train={"lr": 0.05}), joined(train={"lr": 0.05})
    foreign = {key: block(learner, key) for key in OTHERS}
    before, first = block(learner, OWN), learner.train(0, 1, rehearse=False, fisher=True).loss
    learner.train(1, 40, rehearse=False, fisher=True)
    assert learner.train(2, 1, rehearse=False).loss < 0.9 * first
    assert not same(before, block(learner, OWN))
    assert all(same(foreign[key], block(learner, key)) for key in OTHERS)
    plain.train(0, 1, rehearse=False)
    plain.train(1, 40, rehearse=False)
    plain.train(2, 1, rehearse=False)
    assert plain.sha256() != learner.sha256()


def test_the_same_rounds_give_the_same_block() -> None:
    one, two = joined(), joined()
    for learner in (one, two):
        learner.train(0, 3, rehearse=False, fisher=True)
        learner.train(1, 3, rehearse=False, fisher=True)
    assert one.sha256() == two.sha256()


def test_the_basis_lasts_until_the_next_event_or_the_end_of_the_correction() -> None:
    learner = joined()

    def current() -> FisherSteps | None:
        return learner._local.fisher

    learner.train(0, 2, rehearse=False)
    learner.train(1, 2, rehearse=False, fisher=True)
    measured = current()
    assert measured is not None
    assert OWN not in learner._local._optimizers  # AdamW's moments are of another basis
    learner.train(2, 2, rehearse=False, fisher=True)
    assert current() is measured
    learner.set_anchor()
    learner.train(3, 2, rehearse=False, fisher=True)
    assert current() is not measured
    learner.train(4, 2, rehearse=False)
    assert current() is None
    learner.train(5, 2, rehearse=False, fisher=True)
    learner.delete_block(OTHERS[0])  # it was in the model that was measured
    assert current() is None
    learner.train(6, 2, rehearse=False, fisher=True)
    learner.delete_block(OWN)
    assert current() is None


def test_steps_by_group_and_damping_apply() -> None:
    def moved(prox: float) -> dict[str, float]:
        learner = joined()
        learner.set_anchor()
        before = block(learner, OWN)
        settings = {g: GroupAction(0 if g == first else 20, prox=prox) for g in learner.groups}
        learner.train(0, 20, rehearse=False, settings=settings, fisher=True)
        return {g: float((b - before[g]).norm()) for g, b in block(learner, OWN).items()}

    first, *others = joined().groups
    free, held = moved(0.0), moved(100.0)
    assert free[first] == held[first] == 0.0
    assert all(0 < held[group] < 0.5 * free[group] for group in others)


def test_fisher_every_trains_in_a_basis_that_is_measured_again() -> None:
    learner = joined(train={"fisher_every": 2})
    bases = []
    for round_ in range(4):
        learner.train(round_, 1, rehearse=False)
        bases.append(learner._local.fisher)
    assert bases[0] is not None and bases[0] is bases[1] is not bases[2]
    assert bases[2] is bases[3]
