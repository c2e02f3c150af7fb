"""unweft forget refuses an adapter if it cannot verify the deletion."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from coordinator_free.identifiers import BlockKey
from peers.errors import InputError
from peers.storage.adapter_folder import WEIGHTS, adapter_sha256
from peers.unlearning.forget import forget
from tests.support.learners import OTHERS, fill, joined


def exported(tmp_path: Path, gram: bool, **sections: Any) -> tuple[Any, Path]:
    learner = joined(**sections)
    learner.export(tmp_path / "a")
    if gram:
        shutil.rmtree(tmp_path / "a" / "blocks")
    return learner, tmp_path / "a"


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("bases", ["orthogonal", "independent"])
@pytest.mark.parametrize("gram", [False, True])
def test_the_result_equals_the_export_after_a_deletion_on_the_device(gram, bases, tmp_path):
    learner, adapter = exported(
        tmp_path, gram, adapter={"bases": bases, "rank": {"early": 1, "mid": 2, "late": 3}}
    )
    report = forget(adapter, "d1", tmp_path / "out")
    assert report.residual < 1e-6 and report.sha256 == adapter_sha256(tmp_path / "out")
    learner.delete_block(OTHERS[0])
    learner.export(tmp_path / "expected")
    found, expected = (load_file(tmp_path / name / WEIGHTS) for name in ("out", "expected"))
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def test_all_incarnations_of_a_device_are_deleted(tmp_path):
    learner = joined()
    learner.add_block(BlockKey("d1", 1), 3)
    fill(learner, BlockKey("d1", 1), seed=7)
    learner.export(tmp_path / "a")
    assert forget(tmp_path / "a", "d1", tmp_path / "out").survivors == ("d0@0", "d2@0")


@pytest.mark.parametrize("gram", [False, True])
def test_an_adapter_changed_after_it_was_written_is_refused(gram, tmp_path):
    _, adapter = exported(tmp_path, gram)
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: t + t.std() * torch.randn(t.shape) for name, t in tensors.items()}, adapter / WEIGHTS)
    with pytest.raises(InputError, match="is in none of its blocks"):
        forget(adapter, "d1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_other_bases_is_refused(tmp_path):
    _, adapter = exported(tmp_path, gram=True)
    edit(adapter / "unweft.json", lambda about: about["recipe"].update(seed=5))
    with pytest.raises(InputError, match="is in none of its blocks"):
        forget(adapter, "d1", tmp_path / "out")


def test_a_nan_is_refused(tmp_path):
    _, adapter = exported(tmp_path, gram=True)
    tensors = load_file(adapter / WEIGHTS)
    next(t for name, t in tensors.items() if "lora_B" in name)[0, 0] = float("nan")
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(InputError, match="is in none of its blocks"):
        forget(adapter, "d1", tmp_path / "out")


def test_a_file_in_half_precision_is_accepted(tmp_path):
    _, adapter = exported(tmp_path, gram=True)
    save_file({n: t.half() for n, t in load_file(adapter / WEIGHTS).items()}, adapter / WEIGHTS)
    assert forget(adapter, "d1", tmp_path / "out").residual < 1e-3


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("unweft.json", lambda c: c["blocks"][0].update(slot="1"), "a slot"),
        ("unweft.json", lambda c: c["blocks"][0].update(slot=99), "no slot 99"),
        ("unweft.json", lambda c: c.update(format=99), "format 99 is not known; allowed: 1"),
        ("unweft.json", lambda c: c.pop("recipe"), "not complete"),
        ("adapter_config.json", lambda c: c.update(lora_alpha=99), "lora_alpha differs from r"),
    ],
)
def test_wrong_descriptions_are_refused(file, change, said, tmp_path):
    _, adapter = exported(tmp_path, gram=True)
    edit(adapter / file, change)
    with pytest.raises(InputError, match=said):
        forget(adapter, "d1", tmp_path / "out")


def test_a_missing_block_file_is_refused(tmp_path):
    _, adapter = exported(tmp_path, gram=False)
    shutil.rmtree(adapter / "blocks" / "d2")
    with pytest.raises(InputError, match=r"d2.*cannot be read"):
        forget(adapter, "d1", tmp_path / "out")


def test_a_merged_adapter_with_more_columns_than_inputs_is_refused(tmp_path):
    """8 independent blocks of r = 5 in d = 32: the deletion works only with blocks/."""
    learner = joined(adapter={"bases": "independent", "rank": 5})
    for i in range(3, 8):
        learner.add_block(BlockKey(f"d{i}", 0), i)
        fill(learner, BlockKey(f"d{i}", 0), seed=i)
    learner.export(tmp_path / "a")
    assert forget(tmp_path / "a", "d1", tmp_path / "out").path == "blocks"
    shutil.rmtree(tmp_path / "a" / "blocks")
    with pytest.raises(InputError, match=r"module 'model.*8 blocks have 40 columns .* d = 32"):
        forget(tmp_path / "a", "d1", tmp_path / "other")
