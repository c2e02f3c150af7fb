"""Checkpoints: a later run resumes to the same bits, and a deletion deletes their blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator_free.identifiers import BlockKey
from peers.errors import InputError
from peers.learning.learner import Learner
from peers.storage.checkpoint import closed_round, load, path_of
from tests.support.learners import OTHERS, OWN, joined, small_learner

STEPS = 3


def saved(run: Path) -> Learner:
    """A learner after training, with its checkpoint in the folder `run`."""
    learner = joined()
    learner.train(0, STEPS, rehearse=False)
    learner.checkpoint(path_of(run, OWN.device), 7)
    return learner


def resumed(run: Path, **sections: Any) -> Learner:
    return small_learner(checkpoint={"resume": str(run)}, **sections)


def resume_all(learner: Learner) -> None:
    learner.set_own(OWN, 0, resume=True)
    for slot, key in enumerate(OTHERS, start=1):
        learner.add_block(key, slot, resume=True)


def test_a_resumed_run_gives_the_same_bits(tmp_path: Path) -> None:
    first, second = saved(tmp_path), resumed(tmp_path)
    assert second.resumes() == (("d0", 0), ("d1", 1), ("d2", 2))
    resume_all(second)
    assert second.sha256() == first.sha256()
    losses = [learner.train(1, STEPS, rehearse=False).loss for learner in (first, second)]
    assert losses[0] == losses[1]
    assert second.sha256() == first.sha256()  # the moments went on too


def test_without_its_moments_a_resumed_run_differs(tmp_path: Path) -> None:
    first, second = saved(tmp_path), resumed(tmp_path)
    second._begins_with.moments.clear()
    resume_all(second)
    for learner in (first, second):
        learner.train(1, STEPS, rehearse=False)
    assert second.sha256() != first.sha256()


def test_only_blocks_with_resume_have_the_saved_values(tmp_path: Path) -> None:
    saved(tmp_path)
    learner = resumed(tmp_path)
    learner.set_own(OWN, 0)
    learner.add_block(OTHERS[0], 1)
    assert all(not torch.any(learner.read(key, g)) for key in (OWN, OTHERS[0]) for g in learner.groups)


def test_the_start_of_training_clears_the_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path)
    learner = resumed(tmp_path)
    learner.set_own(OWN, 0, resume=True)
    learner.train(0, 1, rehearse=False)
    assert not learner._begins_with.blocks and not learner._begins_with.moments
    with pytest.raises(KeyError):
        learner.add_block(OTHERS[0], 1, resume=True)


def test_a_device_without_a_file_begins_with_an_empty_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path)
    learner = small_learner(device="d9", checkpoint={"resume": str(tmp_path)})
    assert learner.resumes() == ()


def test_other_bases_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(InputError, match=r"checkpoint\.resume: .*d0\.safetensors does not fit this run"):
        resumed(tmp_path, adapter={"rank": 3})


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\xff" * 64])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = path_of(tmp_path, OWN.device)
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint\.resume: .* is no checkpoint"):
        resumed(tmp_path)


def test_a_snapshot_is_no_checkpoint(tmp_path: Path) -> None:
    joined().snapshot(path_of(tmp_path, OWN.device), {})
    with pytest.raises(InputError, match="is no checkpoint"):
        resumed(tmp_path)


def test_a_file_names_the_last_closed_round(tmp_path: Path) -> None:
    saved(tmp_path)
    assert closed_round(path_of(tmp_path, OWN.device)) == 7
    joined().snapshot(path_of(tmp_path, "d1"), {})
    with pytest.raises(InputError, match=r"d1\.safetensors: is no checkpoint with a round"):
        closed_round(path_of(tmp_path, "d1"))


def test_the_block_that_an_owner_left_behind_stays_beside_its_present_one(tmp_path: Path) -> None:
    """d1 has retired with slot 1 and is back with slot 3."""
    learner = joined()
    learner.add_block(BlockKey("d1", 1), 3)
    learner.write(BlockKey("d1", 1), learner.groups[0], learner.read(OTHERS[0], learner.groups[0]) + 1)
    learner.checkpoint(path_of(tmp_path, OWN.device), 7)
    found = load(tmp_path, OWN.device, learner.fingerprint)
    assert found.places == (("d0", 0), ("d1", 1), ("d1", 3), ("d2", 2))
    second = resumed(tmp_path)
    second.add_block(BlockKey("d1", 2), 3, resume=True)
    group = learner.groups[0]
    assert torch.equal(second.read(BlockKey("d1", 2), group), learner.read(BlockKey("d1", 1), group))
