"""The learner: training, blocks, deletion, trials and snapshots."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from safetensors import safe_open

from coordinator_free.correction.policy_interface import GroupAction
from coordinator_free.identifiers import BlockKey, Part
from peers.errors import InputError
from peers.learning.diagnosis import Options
from peers.learning.measurement import TRIED_WORST
from peers.storage.snapshots import SnapshotModel
from tests.support.learners import (
    OTHERS,
    OWN,
    block,
    fill,
    joined,
    logits,
    same,
    small_config,
    small_learner,
    small_loaded,
)

NEW = BlockKey("d7", 0)
REHEARSED = {"rehearsal": 1.0}


def test_training_moves_only_the_own_block():
    learner = joined()
    before = {key: block(learner, key) for key in [OWN, *OTHERS]}
    result = learner.train(0, 5, rehearse=True)
    assert result.steps == 5 and math.isfinite(result.loss) and result.seconds > 0
    assert not same(before[OWN], block(learner, OWN))
    assert all(same(before[key], block(learner, key)) for key in OTHERS)


def test_training_lowers_the_loss():
    learner = joined(train={"lr": 0.05})
    first = learner.train(0, 1, rehearse=False).loss
    learner.train(1, 40, rehearse=False)
    # ln 21 = 3.04 is chance; the frozen random head cannot tell tokens apart much better than 2.4.
    assert learner.train(2, 1, rehearse=False).loss < 0.9 * first


def test_the_base_weights_never_move():
    learner = joined()
    learner._adapter.clear()
    frozen = {n: p.clone() for n, p in learner._adapter.model.named_parameters() if "lora_" not in n}
    learner.train(0, 5, rehearse=False)
    learner._adapter.clear()
    after = dict(learner._adapter.model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())


def test_with_a_leak_foreign_copies_move_in_proportion():
    def moved(leak: float) -> float:
        learner = joined(isolation={"leak": leak})
        before = block(learner, OTHERS[0])
        learner.train(0, 1, rehearse=False)
        after = block(learner, OTHERS[0])
        return math.sqrt(sum(float((after[g] - before[g]).square().sum()) for g in before))

    small, large = moved(0.1), moved(1.0)
    assert small > 0
    assert large == pytest.approx(10 * small, rel=1e-2)


def test_a_leak_does_not_change_what_the_first_step_does_to_the_own_block():
    isolated, leaking = joined(), joined(isolation={"leak": 1.0})
    for learner in (isolated, leaking):
        learner.train(0, 1, rehearse=False)
    for group in isolated.groups:
        assert torch.allclose(isolated.read(OWN, group), leaking.read(OWN, group), atol=1e-4)


def test_the_same_state_trains_to_the_same_bits():
    a, b = joined(), joined()
    for learner in (a, b):
        learner.train(0, 3, rehearse=True)
        learner.train(1, 3, rehearse=True)
    assert a.sha256() == b.sha256()


def test_batches_depend_on_round_and_device():
    def trained(round_: int, device: str) -> str:
        learner = joined(device=device)
        learner.train(round_, 1, rehearse=False)
        return learner.sha256()

    assert len({trained(0, "d0"), trained(1, "d0"), trained(0, "d5"), trained(2, "d0"), trained(3, "d0")}) > 1


def test_a_join_does_not_change_the_logits():
    learner = joined()
    before = logits(learner.model)
    learner.add_block(NEW, 3)
    assert torch.equal(before, logits(learner.model))


def test_deletion_of_a_joined_block_restores_the_model():
    learner = joined()
    before, hashed = logits(learner.model), learner.sha256()
    learner.add_block(NEW, 3)
    fill(learner, NEW, seed=9)
    assert not torch.allclose(before, logits(learner.model), atol=1e-3)
    receipt = learner.delete_block(NEW)
    assert receipt.sha256_after == hashed == learner.sha256()
    assert receipt.sha256_before != hashed
    assert torch.equal(before, logits(learner.model))
    assert not learner.has(NEW)


@pytest.mark.parametrize("sections", [{}, {"isolation": {"leak": 0.5}}, {"train": REHEARSED}])
def test_after_a_deletion_the_model_equals_one_without_the_block(sections):
    """Without own training, a remainder of a deleted block would change the logits in the last bit."""
    learner, never = joined(**sections), joined(**sections)
    never.delete_block(OTHERS[1])
    learner.train(0, 3, rehearse=True)
    for key in (OWN, OTHERS[0]):
        for group, values in block(learner, key).items():
            never.write(key, group, values)
    learner.delete_block(OTHERS[1])
    assert torch.equal(logits(learner.model), logits(never.model))
    assert learner.sha256() == never.sha256()


def test_a_deletion_restores_the_base_weights_at_once():
    learner = joined()
    bases = [p for n, p in learner._adapter.model.named_parameters() if "base_layer" in n]
    learner.train(0, 1, rehearse=False)
    learner.delete_block(OTHERS[0])
    now = [p for n, p in learner._adapter.model.named_parameters() if "base_layer" in n]
    assert all(a is b for a, b in zip(bases, now, strict=True))


def test_a_deletion_deletes_the_moments_of_the_block():
    learner = joined(isolation={"leak": 1.0})
    learner.train(0, 2, rehearse=False)
    assert set(learner._local._optimizers) == {OWN, *OTHERS}
    learner.delete_block(OTHERS[0])
    assert set(learner._local._optimizers) == {OWN, OTHERS[1]}
    learner.delete_block(OWN)
    assert set(learner._local._optimizers) == {OTHERS[1]}
    with pytest.raises(RuntimeError, match="no block of its own"):
        learner.train(1, 1, rehearse=False)


def test_moments_last_over_rounds_and_writes():
    learner = joined()
    learner.train(0, 2, rehearse=False)
    moments = learner._local._optimizers[OWN]
    fill(learner, OWN, seed=5)
    start = block(learner, OWN)
    learner.train(1, 1, rehearse=False)
    assert learner._local._optimizers[OWN] is moments
    furthest = max(float((learner.read(OWN, g) - start[g]).abs().max()) for g in start)
    assert 0 < furthest < 3 * 5e-3  # an AdamW step from what was written


def test_an_own_block_on_a_new_slot_starts_at_zero_with_fresh_moments():
    learner = joined()
    learner.train(0, 2, rehearse=False)
    again = BlockKey("d0", 1)
    learner.set_own(again, 5)
    assert not any(values.any() for values in block(learner, again).values())
    assert learner.has(OWN) and not learner._local._optimizers
    learner.delete_block(OWN)
    learner.train(1, 2, rehearse=False)
    assert any(values.any() for values in block(learner, again).values())


def test_an_own_block_may_carry_an_earlier_one():
    learner = joined()
    before, values = logits(learner.model), block(learner, OWN)
    again = BlockKey("d0", 1)
    learner.set_own(again, 0, carry=OWN)
    learner.delete_block(OWN)
    assert same(values, block(learner, again))
    assert torch.allclose(before, logits(learner.model), atol=1e-6)


@pytest.mark.parametrize("omega", [0.25, 1.0])
def test_scaling_the_own_move(omega):
    learner = joined()
    learner.train(0, 2, rehearse=False)
    before = block(learner, OWN)
    learner.train(1, 2, rehearse=False)
    after = block(learner, OWN)
    learner.scale_own_move(omega)
    for group, values in block(learner, OWN).items():
        assert torch.allclose(values, before[group] + omega * (after[group] - before[group]), atol=1e-7)


def test_read_is_a_copy_and_write_is_checked():
    learner = joined()
    learner.read(OWN, "early").fill_(9.0)
    assert not (learner.read(OWN, "early") == 9.0).any()
    with pytest.raises(ValueError, match="d1@0/early"):
        learner.write(OTHERS[0], "early", torch.zeros(2, 2))
    with pytest.raises(KeyError):
        learner.read(NEW, "early")


def test_the_model_uses_a_written_block():
    learner = joined()
    before = logits(learner.model)
    for key in (OWN, OTHERS[0]):
        fill(learner, key, seed=31)
        changed = logits(learner.model)
        assert not torch.allclose(before, changed, atol=1e-3)
        before = changed


def test_rehearsal_drops_one_foreign_block_in_its_share_of_the_steps():
    learner = joined(train={"rehearsal": 0.3})
    dropped = [
        learner._local.left_out(learner._foreign(), round_, step)
        for round_ in range(100)
        for step in range(10)
    ]
    assert all(len(keys) <= 1 and set(keys) <= set(OTHERS) for keys in dropped)
    assert sum(map(len, dropped)) == pytest.approx(300, abs=60)
    assert {key for keys in dropped for key in keys} == set(OTHERS)


def test_a_rehearsed_step_is_a_step_without_the_block_and_correction_has_none():
    rehearsing, without = joined(train=REHEARSED), joined()
    (gone,) = rehearsing._local.left_out(rehearsing._foreign(), 0, 0)
    without.delete_block(gone)
    rehearsing.train(0, 1, rehearse=True)
    without.train(0, 1, rehearse=False)
    assert same(block(rehearsing, OWN), block(without, OWN))
    assert rehearsing.has(gone)
    plain, corrected = joined(), joined(train=REHEARSED)
    for learner in (plain, corrected):
        learner.train(0, 2, rehearse=False)
    assert same(block(plain, OWN), block(corrected, OWN))


def test_a_loss_that_is_not_finite_ends_training():
    learner = joined()
    learner.write(OWN, "mid", torch.full_like(learner.read(OWN, "mid"), math.nan))
    with pytest.raises(RuntimeError, match=r"loss is nan in round 3, step 0.*train\.lr"):
        learner.train(3, 2, rehearse=False)


def test_a_trial_predicts_a_round_of_training_and_changes_nothing():
    tried, untouched = joined(), joined()
    for learner in (tried, untouched):
        learner.train(0, 3, rehearse=False)
        learner.set_anchor()
    more = {group: GroupAction(5) for group in tried.groups}
    less = {group: GroupAction(1) for group in tried.groups}
    drops = tried.trials(1, {"more": more, "less": less})
    assert drops["more"] > drops["less"] > 0
    for learner in (tried, untouched):
        learner.train(1, 3, rehearse=False)
    assert tried.sha256() == untouched.sha256()  # block and moments


def test_a_diverged_trial_has_the_worst_result():
    learner = joined()
    learner.write(OWN, "mid", torch.full_like(learner.read(OWN, "mid"), math.nan))
    tried = {"any": {group: GroupAction(4) for group in learner.groups}}
    assert learner.trials(0, tried)["any"] == -TRIED_WORST


def test_the_loss_of_no_steps_is_nan():
    assert math.isnan(joined().train(0, 0, rehearse=False).loss)


def test_norms_by_block_and_group():
    learner = joined()
    norms = learner.norms()
    assert list(norms) == ["d0@0", "d1@0", "d2@0"]
    assert norms["d1@0"]["late"] == pytest.approx(
        4.0 * float(learner.read(OTHERS[0], "late").norm()), rel=1e-5
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_snapshot_gives_the_logits_of_the_device(family, tmp_path):
    learner = joined(family)
    path = tmp_path / "s" / "00001-round.safetensors"
    meta = {"device": "d0", "incarnation": "0", "round": "1", "tag": "round"}
    learner.snapshot(path, meta)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with safe_open(path, "pt") as file:
        written = dict(file.metadata())
    assert json.loads(written.pop("slots")) == {"d0@0": 0, "d1@0": 1, "d2@0": 2}
    assert written == meta

    evaluator = SnapshotModel(small_loaded(family), small_config())
    base = logits(evaluator.model)
    assert evaluator.load(path)["tag"] == "round"
    assert torch.allclose(logits(evaluator.model), logits(learner.model), atol=1e-5)
    for key in [OWN, *OTHERS]:
        learner.delete_block(key)
    learner.snapshot(path, meta)
    evaluator.load(path)
    assert torch.equal(logits(evaluator.model), base)


LITERAL: dict[str, Any] = {"mixing": {"mode": "paper-literal"}}


def test_paper_literal_computes_with_the_own_block_alone(tmp_path):
    learner, alone = joined(**LITERAL), small_learner()
    alone.set_own(OWN, 0)
    fill(alone, OWN, seed=0)
    assert torch.equal(logits(learner.model), logits(alone.model))
    learner.snapshot(tmp_path / "s.safetensors", {"tag": "end"})
    evaluator = SnapshotModel(small_loaded(), small_config(**LITERAL))
    evaluator.load(tmp_path / "s.safetensors")
    assert torch.allclose(logits(evaluator.model), logits(learner.model), atol=1e-5)


def test_paper_literal_deletes_nothing_from_the_own_model():
    learner = joined(**LITERAL)
    before = block(learner, OWN)
    learner.delete_block(OTHERS[0])
    assert not learner.has(OTHERS[0])
    for group, values in block(learner, OWN).items():
        assert torch.allclose(values, before[group], atol=1e-7)


def test_paper_literal_removes_the_overlap_of_independent_bases():
    learner = joined(**LITERAL, adapter={"bases": "independent"})
    before = block(learner, OWN)
    learner.delete_block(OTHERS[0])
    lost = [float((before[g] - v).norm() / before[g].norm()) for g, v in block(learner, OWN).items()]
    assert all(0 < share < 0.5 for share in lost)  # about r/d of the energy


def test_a_configuration_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"d = 32.*8 slots of r = 5"):
        small_learner(adapter={"rank": 5})


def test_the_curvature_along_a_displacement_is_the_second_difference_of_the_loss() -> None:
    learner = joined()
    kept = {key: block(learner, key) for key in [OWN, *OTHERS]}
    draw = torch.Generator().manual_seed(0)
    moves = {
        Part(key, group): torch.randn(values.shape, generator=draw)
        for key, groups in kept.items()
        for group, values in groups.items()
    }

    def loss(by: float) -> float:
        for part, move in moves.items():
            learner.write(part.block, part.group, kept[part.block][part.group] + by * move)
        return learner.diagnose(0, 16, Options()).loss

    size2 = sum(float(move.square().sum()) for move in moves.values())
    expected = max(loss(1.0) + loss(-1.0) - 2 * loss(0.0), 0.0) / size2
    found = learner.diagnose(0, 16, Options(), moves)
    assert expected > 0
    assert [m.smoothness for m in found.groups.values()] == pytest.approx([expected] * 3, rel=1e-3)
    assert all(same(kept[key], block(learner, key)) for key in kept)
    assert learner.diagnose(0, 16, Options()).loss == found.loss
