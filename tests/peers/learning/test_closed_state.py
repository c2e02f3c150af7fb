"""Files show the last closed round: local steps that nobody has mixed are in none of them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.learning.learner import Learner
from peers.storage.adapter_folder import adapter_sha256
from tests.support.learners import OTHERS, OWN, block, joined, same

MODES: dict[str, dict[str, Any]] = {
    "average": {},
    "leak": {"isolation": {"leak": 0.5}},
    "newest": {"mixing": {"mode": "newest"}},
    "paper-literal": {"mixing": {"mode": "paper-literal"}},
}
SAVED: dict[str, Any] = {"checkpoint": {"save": True}}


def shown(learner: Learner, folder: Path) -> dict[str, Tensor]:
    """All that the files of the learner hold of blocks; the files agree with each other."""
    learner.snapshot(folder / "s.safetensors", {"tag": "end"})
    digest = learner.export(folder / "adapter")
    assert digest == learner.sha256() == adapter_sha256(folder / "adapter")
    return load_file(folder / "s.safetensors") | {
        f"exported/{name}": values
        for name, values in load_file(folder / "adapter" / "adapter_model.safetensors").items()
    }


def open_round(learner: Learner, round_: int = 0, damping: float = 1.0) -> None:
    learner.begin_round()
    learner.train(round_, 3, rehearse=False)
    learner.scale_own_move(damping)


@pytest.mark.parametrize("damping", [1.0, 0.25])
@pytest.mark.parametrize("mode", MODES)
def test_files_in_an_open_round_are_those_of_the_last_close(
    tmp_path: Path, mode: str, damping: float
) -> None:
    learner = joined(**MODES[mode])
    closed = shown(learner, tmp_path)
    open_round(learner, damping=damping)
    assert same(shown(learner, tmp_path), closed)
    learner.close_round()
    after = shown(learner, tmp_path)
    assert not same(after, closed)
    open_round(learner, 1)
    assert same(shown(learner, tmp_path), after)


def test_a_round_that_was_never_closed_leaves_the_state_before_it(tmp_path: Path) -> None:
    learner = joined()
    closed = shown(learner, tmp_path)
    open_round(learner)
    open_round(learner, 4)  # it lost its slot and joined anew
    assert same(shown(learner, tmp_path), closed)


def test_a_checkpoint_has_the_moments_of_the_last_close(tmp_path: Path) -> None:
    learner = joined(**SAVED)
    open_round(learner)
    learner.close_round()
    path = tmp_path / "c.safetensors"
    learner.checkpoint(path, 0)
    closed = load_file(path)
    assert any(name.startswith("moments/") for name in closed)
    open_round(learner, 1)
    learner.checkpoint(path, 0)
    assert same(load_file(path), closed)
    learner.close_round()
    learner.checkpoint(path, 0)
    assert not same(load_file(path), closed)


@pytest.mark.parametrize("mode", ["average", "leak"])
def test_a_block_that_is_deleted_in_an_open_round_is_in_no_file(tmp_path: Path, mode: str) -> None:
    learner, gone = joined(**MODES[mode]), OTHERS[0]
    open_round(learner)
    kept = learner._closed._values.get(gone, {})
    receipt = learner.delete_block(gone)
    found = shown(learner, tmp_path)
    assert not any(name.startswith(f"{gone}/") for name in found)
    assert receipt.sha256_after == learner.sha256()
    assert not any(values.any() for values in kept.values())
    with safe_open(tmp_path / "s.safetensors", framework="pt") as file:
        assert str(gone) not in json.loads(file.metadata()["slots"])


def test_a_leave_projection_in_an_open_round_reaches_the_files(tmp_path: Path) -> None:
    alone, during = joined(**MODES["paper-literal"]), joined(**MODES["paper-literal"])
    alone.delete_block(OTHERS[0])
    open_round(during)
    during.delete_block(OTHERS[0])
    assert same(shown(during, tmp_path / "a"), shown(alone, tmp_path / "b"))


def test_a_copy_that_arrives_in_an_open_round_is_in_the_files(tmp_path: Path) -> None:
    learner = joined(**MODES["leak"])
    open_round(learner)
    for key in (OTHERS[0], OTHERS[1]):
        values = torch.full_like(learner.read(key, "early"), 0.5)
        learner.write(key, "early", values)
        assert torch.equal(shown(learner, tmp_path)[f"{key}/early"], values)


def test_a_new_own_block_begins_with_the_values_of_the_last_close(tmp_path: Path) -> None:
    learner, new = joined(), BlockKey("d0", 1)
    closed = block(learner, OWN)
    open_round(learner)
    learner.set_own(new, 5, carry=OWN)
    found = shown(learner, tmp_path)
    for key in (OWN, new):
        assert same({group: found[f"{key}/{group}"] for group in learner.groups}, closed)


def test_local_steps_that_are_not_exported_end_early(tmp_path: Path) -> None:
    learner = joined()
    closed = shown(learner, tmp_path)
    learner.begin_round()
    threading.Timer(0.05, learner.cut_training).start()
    assert learner.train(0, 1_000_000, rehearse=False).steps < 1_000_000
    assert same(shown(learner, tmp_path), closed)
    assert learner.train(1, 2, rehearse=False).steps == 2  # an export ends the cut
