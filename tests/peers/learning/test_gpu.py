"""A GPU changes only speed and rounding. These tests are skipped without a GPU, with a message."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator_free.correction.residuals import Observables
from coordinator_free.identifiers import BlockKey
from peers.learning.diagnosis import Options
from peers.learning.learner import Learner
from peers.models.loader import pick_device
from peers.storage.checkpoint import path_of
from tests.support.learners import OTHERS, OWN, block, fill, same, small_config, small_data, small_loaded
from tests.support.ranks import in_all_ranks
from tests.support.virtual_runs import CHURN, virtual_run
from transport.links.gloo_links import GlooLinks

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(400),
]
CUDA = torch.device("cuda:0")
STEPS = 4


def learner(device: torch.device = CUDA, **sections: Any) -> Learner:
    """The own block on slot 0 and two others, all with values, as on the CPU (tests/support/learners.py)."""
    loaded = small_loaded()
    loaded.model.to(device)
    made = Learner(loaded, small_config(**sections), small_data(loaded), OWN.device)
    made.set_own(OWN, 0)
    for slot, key in enumerate(OTHERS, start=1):
        made.add_block(key, slot)
    for seed, key in enumerate([OWN, *OTHERS]):
        fill(made, key, seed)
    return made


def close(a: Learner, b: Learner, key: BlockKey) -> bool:
    there = block(b, key)
    return all(torch.allclose(value, there[g], rtol=1e-3, atol=1e-5) for g, value in block(a, key).items())


def logits(one: Learner) -> torch.Tensor:
    ids = torch.arange(24, device=CUDA).reshape(2, 12) % 15
    with torch.no_grad():
        return one.model(input_ids=ids).logits.clone()


def test_auto_is_the_gpu() -> None:
    assert pick_device("auto") == CUDA


def test_training_agrees_with_the_cpu_and_repeats_to_the_bit() -> None:
    cpu, first, second = learner(torch.device("cpu")), learner(), learner()
    losses = [one.train(0, STEPS, rehearse=False).loss for one in (cpu, first, second)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[1] == losses[2]
    assert first.sha256() == second.sha256()
    assert close(cpu, first, OWN)
    assert all(same(block(first, key), block(cpu, key)) for key in OTHERS)


def test_after_a_deletion_the_model_equals_one_without_the_block() -> None:
    one, never = learner(isolation={"leak": 0.5}), learner(isolation={"leak": 0.5})
    never.delete_block(OTHERS[1])
    one.train(0, STEPS, rehearse=True)
    for key in (OWN, OTHERS[0]):
        for group, values in block(one, key).items():
            never.write(key, group, values)
    one.delete_block(OTHERS[1])
    assert torch.equal(logits(one), logits(never))
    assert one.sha256() == never.sha256()


def test_a_run_from_a_checkpoint_gives_the_same_bits(tmp_path: Path) -> None:
    first = learner()
    first.train(0, STEPS, rehearse=False)
    first.checkpoint(path_of(tmp_path, OWN.device), 0)
    loaded = small_loaded()
    loaded.model.to(CUDA)
    config = small_config(checkpoint={"resume": str(tmp_path)})
    second = Learner(loaded, config, small_data(loaded), OWN.device)
    second.set_own(OWN, 0, resume=True)
    for slot, key in enumerate(OTHERS, start=1):
        second.add_block(key, slot, resume=True)
    for one in (first, second):
        one.train(1, STEPS, rehearse=False)
    assert first.sha256() == second.sha256()


def test_a_diagnosis_agrees_with_the_cpu() -> None:
    found = [one.diagnose(3, 32, Options()) for one in (learner(torch.device("cpu")), learner())]
    for group, on_cpu in found[0].groups.items():
        seen: list[Observables] = [
            f.groups[group].observables(f.gap, 0.1, 0.01, f.copies[group]) for f in found
        ]
        for field in fields(Observables):
            a, b = (getattr(one, field.name) for one in seen)
            assert b == pytest.approx(a, rel=2e-3, abs=1e-5), (group, field.name)
        assert on_cpu.blocks.keys() == found[1].groups[group].blocks.keys()


def test_a_run_with_churn_on_one_gpu_repeats_to_the_bit(tmp_path: Path) -> None:
    """Several processes share the GPU, with joins, a crash, a return and a partition."""
    runs = [virtual_run(tmp_path / name, "--set", "model.device=cuda:0", *CHURN) for name in ("one", "two")]
    assert runs[0] == runs[1]
    assert any(device["adapter_sha256"] for device in runs[0]["devices"])


async def _mean(links: GlooLinks) -> object:
    mean = await links.all_reduce_mean(torch.arange(3.0, device=CUDA))
    return mean.device.type, mean.tolist()


def test_all_reduce_over_nccl_in_a_world_of_one(tmp_path: Path) -> None:
    """NCCL refuses two ranks on one GPU. A sum over several ranks needs several GPUs."""
    assert in_all_ranks(_mean, tmp_path, world=1) == [("cuda", [0.0, 1.0, 2.0])]
