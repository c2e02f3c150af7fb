"""`unweft experiment baselines`: the unlearners on learners of three devices, the table, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from coordinator_free.identifiers import BlockKey
from emulation.experiments import baselines, runner, unlearners
from emulation.experiments.aggregate import aggregate
from emulation.experiments.arms import ARMS, BEFORE, FEDERASER, KD_UNLEARN, NAIVE, NAIVE_REMOVE, UNIFORM
from emulation.experiments.catalogue import BASELINES, DEFAULT, EXPERIMENTS, SCALES, choose_arms
from emulation.experiments.grid import Cell, Leave
from emulation.experiments.metrics import snapshots_by_k
from emulation.experiments.paired import paired_rows
from emulation.experiments.unlearners import Distillation, Eraser, Influence, Unlearner, WatchedLearner
from peers.errors import InputError
from peers.models.loader import LoadedModel
from peers.tasks import predictions
from peers.unlearning.kd_unlearn import distillation_loss
from tests.support.learners import fill, small_config, small_data, small_loaded

SMOKE = SCALES["smoke"]
DEVICES = ("d0", "d1", "d2")
KEYS = [BlockKey(device, 0) for device in DEVICES]


def cell(arm: str, seed: int = 0) -> Cell:
    return Cell(DEFAULT, ARMS[arm], seed, SMOKE)


def watched(unlearner: Unlearner, **sections: Any) -> dict[str, WatchedLearner]:
    """The learners of three devices of which d2 leaves, each with the same three random blocks."""
    for own, device in enumerate(DEVICES):
        loaded = small_loaded()
        learner = WatchedLearner(unlearner, loaded, small_config(**sections), small_data(loaded), device)
        for slot, key in enumerate(KEYS):
            (learner.set_own if slot == own else learner.add_block)(key, slot)
            fill(learner, key, seed=slot)
    return unlearner.learners


def blocks(learner: WatchedLearner) -> list[Tensor]:
    return [learner.read(key, group) for key in KEYS for group in learner.groups]


def test_a_survivor_unlearns_once_before_its_first_correction_steps(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    class Seen(Unlearner):
        def unlearn(self, learner: WatchedLearner, leave: Leave, round: int) -> None:
            seen.append((learner.device, round))

    found = Seen(cell(NAIVE), tmp_path)
    learner, event = watched(found)["d0"], cell(NAIVE).event_round
    learner.train(event, 1, rehearse=False)  # the correction of an earlier event
    learner.train(event + 1, 1, rehearse=True)  # the round that was under way at the leave
    for round_ in (event + 2, event + 3):
        learner.train(round_, 1, rehearse=False)
    assert seen == [("d0", event + 2)]


class TwoLeaves(Cell):
    """d2 leaves after round 3, d1 after round 8."""

    @property
    def leaves(self) -> tuple[Leave, ...]:
        return Leave(3, "d2", ("d0", "d1")), Leave(8, "d1", ("d0",))


def two_leaves(arm: str) -> TwoLeaves:
    return TwoLeaves(DEFAULT, ARMS[arm], 0, SMOKE)


def test_a_survivor_unlearns_at_each_leave_and_a_leaver_not_at_its_own(tmp_path: Path) -> None:
    seen: list[tuple[str, str, int]] = []

    class Seen(Unlearner):
        def unlearn(self, learner: WatchedLearner, leave: Leave, round: int) -> None:
            seen.append((learner.device, leave.leaver, round))

    learners = watched(Seen(two_leaves(NAIVE), tmp_path))
    for round_ in (4, 5, 9, 10):
        for device in ("d0", "d1"):
            learners[device].train(round_, 1, rehearse=False)
    assert seen == [("d0", "d2", 4), ("d1", "d2", 4), ("d0", "d1", 9)]


def test_an_influence_step_at_a_second_leave_moves_the_blocks_of_both(tmp_path: Path) -> None:
    found = Influence(two_leaves("influence"), tmp_path)
    d0 = watched(found)["d0"]
    found.unlearn(d0, found.leaves[0], 4)
    first, sent = blocks(d0), found.sent_bytes
    found.unlearn(d0, found.leaves[1], 9)
    assert not any(torch.equal(a, b) for a, b in zip(first, blocks(d0), strict=True))
    assert found.sent_bytes - sent == 1 * 3 * d0.block_bytes()  # a gradient of three blocks to one survivor


def test_federaser_repeats_its_repetition_at_a_second_leave(tmp_path: Path) -> None:
    found = Eraser(two_leaves(FEDERASER), tmp_path)
    learner = watched(found)["d0"]
    for round_ in range(4):  # 0 and 2 are stored
        learner.train(round_, 4, rehearse=True)
    stored = found.history("d0").rounds
    for round_ in (4, 5, 6, 7, 8):  # 4 and 5 repeat them; of the others 6 and 8 are stored
        learner.train(round_, 4, rehearse=round_ > 5)
    again = found.history("d0").rounds
    assert len(again) == 4
    for old, new in zip(stored, again, strict=False):  # as long as the stored moves
        for group, values in new.items():
            assert float(values.norm()) == pytest.approx(float(old[group].norm()), rel=1e-3)
    steps = [learner.train(round_, 4, rehearse=False).steps for round_ in (9, 10, 11, 12, 13)]
    assert steps == [2, 2, 2, 2, 4]
    assert found.stored_bytes == 2 * sum(m.numel() * 4 for moves in stored for m in moves.values())


def test_an_influence_step_raises_the_leavers_loss_on_all_survivors_alike(tmp_path: Path) -> None:
    found = Influence(cell("influence"), tmp_path)
    learners = watched(found)
    d0, data = learners["d0"], learners["d2"].data

    def loss() -> float:
        with torch.no_grad():
            return float(d0._adapter.loss(data)) if d0.model is not None else 0.0

    before = loss()
    for device in ("d0", "d1"):
        found.unlearn(learners[device], found.leaves[0], 6)
    assert loss() > before
    pairs = zip(blocks(d0), blocks(learners["d1"]), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    # A gradient of three blocks to two survivors, then three moved blocks to the other one.
    assert found.sent_bytes == (2 * 3 + 3) * d0.block_bytes() > 0


def test_distillation_brings_the_leavers_outputs_to_the_base_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base: LoadedModel = small_loaded()
    monkeypatch.setattr(unlearners, "load_model", lambda config: base)
    monkeypatch.setattr(unlearners, "KD_STEPS", 5)
    found = Distillation(cell(KD_UNLEARN), tmp_path)
    learners = watched(found, train={"lr": 5e-3})
    d0, data = learners["d0"], learners["d2"].data

    def kl() -> float:
        with torch.no_grad():
            logits, wanted = predictions(d0.model, data)
            return float(distillation_loss(logits, predictions(base.model, data)[0], wanted))

    before = kl()
    found.unlearn(d0, found.leaves[0], 6)
    assert kl() < before
    assert (found.leaver_steps, found.sent_bytes) == (5, 2 * d0.block_bytes())
    kept = tmp_path / "devices" / "d0" / "snapshots"
    assert [path.name for path in kept.iterdir()] == ["00006-unlearned-d2.safetensors"]


def test_a_baseline_that_keeps_the_block_is_scored_after_its_unlearning(tmp_path: Path) -> None:
    for device in ("d0", "d1"):
        (tmp_path / device).mkdir()
        for name in ("00001-round", "00003-unlearned-d2", "00003-round"):
            (tmp_path / device / f"{name}.safetensors").touch()
    found = [(k, paths[0].name) for k, paths in snapshots_by_k(cell(KD_UNLEARN), tmp_path, 1)]
    assert found == [(0, "00003-unlearned-d2.safetensors"), (2, "00003-round.safetensors")]


def test_federaser_repeats_the_stored_rounds_from_zero(tmp_path: Path) -> None:
    found = Eraser(cell(FEDERASER), tmp_path)
    learner = watched(found)["d0"]
    for round_ in range(4):  # of which 0 and 2 are stored
        learner.train(round_, 4, rehearse=True)
    stored = found.history("d0").rounds
    assert len(stored) == cell(FEDERASER).repeated == 2
    size = sum(move.numel() * 4 for moves in stored for move in moves.values())
    assert found.stored_bytes == size
    result = learner.train(5, 4, rehearse=False)
    assert result.steps == 2
    for group, values in learner.own_values().items():
        assert float(values.norm()) == pytest.approx(float(stored[0][group].norm()), rel=1e-3)
    assert not any(learner.read(KEYS[1], group).any() for group in learner.groups)
    assert [learner.train(r, 4, rehearse=False).steps for r in (6, 7)] == [2, 4]
    assert found.history("d0").rounds == []  # no round is stored when no leave is ahead
    assert found.stored_bytes == size


def test_the_bytes_of_ewc_are_those_of_two_blocks(tmp_path: Path) -> None:
    found = unlearners.ElasticWeightConsolidation(cell("ewc-leave"), tmp_path)
    learner = watched(found, correction={"ewc": 1.0})["d0"]
    learner.set_anchor()
    assert found.stored_bytes == 0
    learner.train(5, 1, rehearse=False)
    assert found.stored_bytes == 2 * 4 * sum(values.numel() for values in learner.own_values().values())
    learner.train(6, 1, rehearse=True)  # the correction is over; the figure is the largest one
    assert (learner.ewc_bytes, found.stored_bytes > 0) == (0, True)


def test_federaser_is_trained_apart_and_has_rounds_to_repeat() -> None:
    eraser, uniform = cell(FEDERASER), cell(UNIFORM)
    assert eraser.before is None and uniform.before is not None and uniform.before.arm == BEFORE
    assert eraser.rounds == SMOKE.learn + 2 + SMOKE.correct
    assert eraser.scenario().correction.rounds == 2 + SMOKE.correct


def test_the_compact_scale_is_shorter_for_baselines_and_a_recovery_which_is_evaluated_every_round() -> None:
    compact = SCALES["compact"]
    for name in (BASELINES, "recovery"):
        assert EXPERIMENTS[name].sized(compact).learn == 60 < compact.learn
    assert EXPERIMENTS[BASELINES].sized(SMOKE) == SMOKE
    assert EXPERIMENTS["recovery"].sized(compact).every == 1 < compact.every
    assert EXPERIMENTS["ablation"].sized(compact) == compact


def test_chosen_arms_include_those_from_which_others_are_derived() -> None:
    found = choose_arms(EXPERIMENTS[BASELINES], NAIVE_REMOVE, SMOKE)
    assert set(found) == {NAIVE_REMOVE, NAIVE, UNIFORM, "oracle"}
    assert choose_arms(EXPERIMENTS[BASELINES], "", SMOKE) == EXPERIMENTS[BASELINES].arms
    with pytest.raises(InputError, match="--arms: 'federaser' is no arm of joins; allowed: dominant"):
        choose_arms(EXPERIMENTS["joins"], FEDERASER, SMOKE)


def measured(arm: str, loss: float, **other: Any) -> dict[str, Any]:
    point = {"k": 0, "loss": 3.0, **dict.fromkeys(("retain", "test", "forget", "fresh", "auc", "tpr"), 0.5)}
    point |= {"bytes": 2e6, "steps": 30, "seconds": 1.0, "cpu_s": 4.0}
    curve = [point, {**point, "k": 5, "loss": loss, "retain": 0.75}]
    key = {"setting": "default", "arm": arm, "seed": 0, "prefix_sha256": None}
    return {**key, "curve": curve, "worst_loss": None, "decisions": [], **other}


def test_the_table_has_costs_beside_accuracies() -> None:
    costs = {"stored_bytes": 12_340_000, "leaver_steps": 40}
    found = [measured(UNIFORM, 2.0), measured(NAIVE, 1.0), measured(KD_UNLEARN, 1.5, **costs)]
    rows = baselines.with_storage(paired_rows([*found, measured("oracle", 1.0)], (NAIVE_REMOVE,)), found)
    removed = next(row for row in rows if row["arm"] == NAIVE_REMOVE)
    assert (removed["loss"], removed["bytes"], removed["stored_bytes"]) == (3.0, 0, 0)
    console = Console(width=200, record=True)
    baselines.print_baselines(console, aggregate(rows), baselines.storage(rows))
    said = console.export_text()
    assert "12.34" in said and "kd-unlearn needs: the leaver, its data and time for 40 steps" in said
    assert "25.0" in next(x for x in said.splitlines() if x.split()[:1] == [KD_UNLEARN])  # RI of the loss


@pytest.mark.slow
def test_baselines_are_runs_of_devices(tmp_path: Path) -> None:
    """Four runs of three devices in this process: only a whole run shows that the protocol carries on."""
    wanted = [cell(arm) for arm in (NAIVE, KD_UNLEARN, FEDERASER)]
    before = wanted[0].before
    assert before is not None
    found = runner.run_cells([before, *wanted], tmp_path, Console(quiet=True))
    naive, distilled, erased = found
    assert naive["curve"][0]["forget"] is not None and "stored_bytes" not in naive
    assert naive["prefix_sha256"] == distilled["prefix_sha256"] and erased["prefix_sha256"] is None
    assert distilled["leaver_steps"] == unlearners.KD_STEPS
    assert distilled["curve"][0]["loss"] != naive["curve"][0]["loss"]
    assert [point["k"] for point in erased["curve"]] == [0, 2, 4, 6, 8]
    assert erased["stored_bytes"] > 0
    kept = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*.safetensors")}
    assert kept == {("default", BEFORE.name)}
    lines = (tmp_path / erased["setting"] / FEDERASER / "seed-0/run/devices/d0/metrics.jsonl").read_text()
    steps = [json.loads(line)["steps"] for line in lines.splitlines()]
    assert steps[-8:-4] == [
        5,
        2,
        2,
        5,
    ]  # the round under way at the leave, two repeated rounds, then training
