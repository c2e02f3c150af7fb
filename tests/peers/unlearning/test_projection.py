"""Projected steps: on a quadratic, and on a learner that deletes a block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peers.protocol import actions as do
from peers.unlearning.projection import without_way_back
from tests.support.learners import OTHERS, OWN, block, joined
from tests.support.simulated import Network, small_config

GONE = OTHERS[1]
WAY = torch.tensor([[2.0, 0.0]])


def descended(goal: Tensor, ways: list[Tensor]) -> Tensor:
    """The end of gradient descent on 1/2 |B - goal|^2 from B = 0."""
    values = torch.zeros_like(goal)
    for _ in range(60):
        values = values + without_way_back(-0.2 * (values - goal), ways)
    return values


def test_descent_on_a_quadratic_reaches_all_but_the_way_back() -> None:
    goal = torch.tensor([[1.0, 3.0]])
    assert torch.allclose(descended(goal, []), goal, atol=1e-4)
    assert torch.allclose(descended(goal, [WAY]), torch.tensor([[0.0, 3.0]]), atol=1e-4)


def test_a_goal_away_from_the_former_model_is_reached_whole() -> None:
    goal = torch.tensor([[-1.0, 3.0]])
    assert torch.allclose(descended(goal, [WAY]), goal, atol=1e-4)
    assert torch.equal(without_way_back(goal, [torch.zeros(1, 2)]), goal)


def along(projects: bool) -> tuple[float, Tensor]:
    """How far a correction of some steps goes along the way back, and the kept way of the first group."""
    learner = joined(train={"lr": 1e-2})
    learner._place(())
    way = learner._replacement(OWN, GONE)
    before = block(learner, OWN)
    learner.delete_block(GONE, project=projects)
    learner.train(0, 6, rehearse=False)
    after = block(learner, OWN)
    group = learner.groups[0]
    kept = learner._local._ways_back.get(GONE, {}).get(group, torch.zeros(1))
    assert bool(kept.any()) == projects
    learner.train(1, 1, rehearse=True)
    assert not learner._local._ways_back
    return float(((after[group] - before[group]) * way[group]).sum()), kept


def test_a_correction_does_not_follow_the_way_back_and_forgets_it_at_its_end() -> None:
    (free, _), (barred, kept) = along(False), along(True)
    assert barred < free
    assert barred <= 1e-7
    assert not kept.any()  # overwritten


@pytest.mark.parametrize("projects", [True, False])
def test_survivors_project_after_a_leave_if_the_scenario_says_so(projects: bool) -> None:
    net = Network(small_config(correction={"rounds": 9, "projection": projects}))
    net.cohort(3)
    net.rounds(2)
    net.signal("d2", "leave")
    net.rounds(3)
    drops = [drop for device in net for drop in device.done(do.DropBlock)]
    assert drops and {drop.project for drop in drops} == {projects}
