"""The handover refit: the own block takes over the output of a dropped block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from peers.learning.learner import Learner
from peers.protocol import actions as do
from peers.unlearning.handover_refit import handover_refit
from tests.support.learners import OTHERS, OWN, block, joined, logits, same
from tests.support.simulated import Network, small_config

GONE = OTHERS[1]


def moves(learner: Learner) -> dict[str, Tensor]:
    learner._place(())
    own, gone = learner._blocks[OWN], learner._blocks[GONE]
    return handover_refit(learner._adapter.model, learner.layout, own, gone, [learner._local._data])


def test_a_refit_is_ridge_regression_on_the_inputs_of_the_modules() -> None:
    learner = joined()
    found = moves(learner)
    seen: dict[str, Tensor] = {}
    shape = learner.layout.modules[0]
    module = learner._adapter.model.base_model.model.get_submodule(shape.name)
    hook = module.register_forward_hook(lambda _, args, __: seen.update(x=args[0].detach()))
    data = learner._local._data
    with torch.no_grad():
        learner._adapter.model(**data.inputs())
    hook.remove()
    x = seen["x"][data.counted(seen["x"].shape[1])].double()
    own, gone = learner._blocks[OWN], learner._blocks[GONE]
    rows = learner.layout.slices(shape.group)[shape.name]
    z, y = x @ own.bases[shape.name].double(), x @ gone.bases[shape.name].double()
    wanted = y @ gone.data[shape.group][rows].double().T
    ridge = 1e-2 * (z.T @ z).trace() / z.shape[1]
    stacked = torch.cat([z, ridge.sqrt() * torch.eye(z.shape[1], dtype=torch.float64)])
    target = torch.cat([wanted, torch.zeros(z.shape[1], wanted.shape[1], dtype=torch.float64)])
    best = torch.linalg.lstsq(stacked, target).solution.T
    assert torch.allclose(found[shape.group][rows].double(), best, atol=1e-6)


def test_a_deletion_with_a_refit_changes_the_logits_less() -> None:
    whole, plain, taken = joined(), joined(), joined()
    plain.delete_block(GONE)
    taken.delete_block(GONE, refit=1.0)
    before = logits(whole.model)
    errors = [float((logits(one.model) - before).norm()) for one in (plain, taken)]
    assert errors[1] < errors[0]
    assert not taken.has(GONE) and same(block(taken, OTHERS[0]), block(plain, OTHERS[0]))


def test_a_settled_snapshot_includes_the_refit(tmp_path: Path) -> None:
    learner = joined()
    learner.begin_round()
    learner.train(0, 2, rehearse=False)
    before, trained = {g: b.clone() for g, b in learner._local.before.items()}, block(learner, OWN)
    wanted = moves(learner)
    learner.delete_block(GONE, refit=0.4)
    for group, move in wanted.items():
        assert torch.allclose(learner.read(OWN, group), trained[group] + 0.4 * move, atol=1e-6)
        assert torch.allclose(learner._local.before[group], before[group] + 0.4 * move, atol=1e-6)
    learner.snapshot(tmp_path / "s.safetensors", {"tag": "deleted:d1"})
    shown = load_file(tmp_path / "s.safetensors")
    for group, move in wanted.items():
        assert torch.allclose(shown[f"{OWN}/{group}"], before[group] + 0.4 * move, atol=1e-6)


@pytest.mark.parametrize("after_ms", range(0, 210, 30))  # in the local steps of a round, or after them
def test_a_move_beside_a_refit_is_damped_once_as_by_averaging(after_ms: int) -> None:
    net = Network(small_config(topology={"kind": "full"}, correction={"rounds": 9, "refit": 0.4}))
    net.cohort(4)
    net.rounds(3)
    net.run(after_ms / 1000)
    net.signal("d3", "leave")
    net.rounds(6)
    for device in net:
        drop = next(a for a in device.told if isinstance(a, do.DropBlock))
        at = device.told.index(drop)
        sent, publish = next(
            (n, a) for n, a in enumerate(device.told) if isinstance(a, do.Publish) and n > at
        )
        assert "replaces" in {item[4] for item in publish.manifest.items}
        between = [a.damping for a in device.told[at:sent] if isinstance(a, do.Train)]
        assert drop.damping == pytest.approx(1 / 3)
        assert between in ([], [pytest.approx(1 / 3)])
        assert {a.damping for a in device.told[sent:] if isinstance(a, do.Train)} == {1.0}


def test_in_newest_a_refit_is_an_ordinary_version() -> None:
    settings = {"rounds": 9, "refit": 0.4}
    net = Network(small_config(correction=settings, mixing={"mode": "newest", "omega": 0.7}))
    net.cohort(3)
    net.rounds(3)
    net.signal("d2", "leave")
    net.rounds(4)
    for device in net:
        assert [drop.damping for drop in device.done(do.DropBlock)] == [1.0]
        assert {train.damping for train in device.done(do.Train)} == {0.7}


def test_without_a_refit_the_own_block_stays_unchanged() -> None:
    learner = joined()
    before = block(learner, OWN)
    learner.delete_block(GONE)
    assert same(block(learner, OWN), before)


def test_the_own_block_is_not_refitted_to_itself() -> None:
    learner = joined()
    learner.delete_block(OWN, refit=0.4)
    assert not learner.has(OWN)
