"""Exported adapters of every kind: how they load, what a deletion leaves, what plain PEFT does with them."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from peers.errors import InputError
from peers.lora.kinds import KINDS
from peers.storage.adapter_folder import ABOUT, BLOCKS, CONFIG, WEIGHTS, adapter_sha256, tensors_sha256
from peers.unlearning import adapter_hashes
from peers.unlearning.forget import forget
from peers.unlearning.saved_model import add_adapter, load_adapter
from tests.support.learners import OTHERS, OWN, joined, logits, small_loaded
from tests.support.tiny_models import Family

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",  # PEFT 0.21, transformers 5.23
    "ignore:fan_in_fan_out is set to:UserWarning",  # GPT-2 mixes Conv1D and Linear
    "ignore:Model has `tie_word_embeddings=True`:UserWarning",
)
SOME_KINDS = ["lora", "bottleneck-relu", "vera"]


def loaded(folder: Path, family: Family = "llama") -> Tensor:
    return logits(load_adapter(small_loaded(family).model, folder))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", SOME_KINDS)
def test_the_loaded_adapter_gives_the_logits_of_the_device(kind: str, family: Family, tmp_path: Path) -> None:
    learner = joined(family, adapter={"kind": kind})
    assert learner.export(tmp_path / "a") == adapter_sha256(tmp_path / "a") == learner.sha256()
    assert torch.allclose(loaded(tmp_path / "a", family), logits(learner.model), atol=1e-5)
    if KINDS[kind].dense:
        plain = PeftModel.from_pretrained(small_loaded(family).model, tmp_path / "a")
        assert torch.allclose(logits(plain), logits(learner.model), atol=1e-5)


def test_plain_peft_refuses_what_it_would_compute_wrongly(tmp_path: Path) -> None:
    joined(adapter={"kind": "bottleneck-relu"}).export(tmp_path / "a")
    assert not list(tmp_path.rglob(CONFIG))
    with pytest.raises(ValueError, match=CONFIG):
        PeftModel.from_pretrained(small_loaded().model, tmp_path / "a")


def test_peft_neither_merges_nor_saves_a_bottleneck(tmp_path: Path) -> None:
    """Its hooks would be lost: the merged or saved model would compute another function."""
    learner = joined(adapter={"kind": "bottleneck-relu"})
    learner.export(tmp_path / "a")
    joined().export(tmp_path / "lora")
    model: Any = load_adapter(small_loaded().model, tmp_path / "a")
    for one in (model, deepcopy(model)):
        for merge in (one.merge_and_unload, one.merge_adapter):
            with pytest.raises(InputError, match=r"merge: .* 'bottleneck-relu', and its factors alone"):
                merge()
        with pytest.raises(InputError, match=r"save_pretrained: .* 'bottleneck-relu'"):
            one.save_pretrained(tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert torch.allclose(logits(one), logits(learner.model), atol=1e-5)
    add_adapter(model, tmp_path / "lora", "plain")
    model.save_pretrained(tmp_path / "out", selected_adapters=["plain"], save_embedding_layers=False)
    assert torch.allclose(logits(model.merge_and_unload()), logits(joined().model), atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "bottleneck-relu"])
def test_an_adapter_that_does_not_fit_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    joined(adapter={"kind": kind}).export(tmp_path / "a")
    wrong = [("missing", WEIGHTS, None), ("damaged", WEIGHTS, b"x" * 40)]
    wrong += [("no-config", CONFIG, None), ("bad-config", CONFIG, b"{")] if KINDS[kind].dense else []
    base = small_loaded().model
    for name, file, content in wrong:
        path = shutil.copytree(tmp_path / "a", tmp_path / name) / file
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}/{file}: "):
            load_adapter(base, tmp_path / name)
    for other in (small_loaded("gpt2").model, load_adapter(base, tmp_path / "a")):
        with pytest.raises(InputError, match=r"a: module '.*q_proj' \(32 -> 32\) is not in the given model"):
            load_adapter(other, tmp_path / "a")


def test_the_model_of_a_device_is_not_merged_without_its_gates() -> None:
    with pytest.raises(InputError, match=r"merge: .* 'vera'"):
        joined(adapter={"kind": "vera"}).model.merge_adapter()


@pytest.mark.parametrize("kind", ["lora", "vera"])
def test_a_dense_adapter_can_be_merged_and_saved(kind: str, tmp_path: Path) -> None:
    learner = joined(adapter={"kind": kind})
    learner.export(tmp_path / "a")
    model: Any = load_adapter(small_loaded().model, tmp_path / "a")
    model.save_pretrained(tmp_path / "out", save_embedding_layers=False)  # "auto" asks the network
    plain = PeftModel.from_pretrained(small_loaded().model, tmp_path / "out")
    for one in (plain, model.merge_and_unload()):
        assert torch.allclose(logits(one), logits(learner.model), atol=1e-4)


@pytest.mark.parametrize("path", ["blocks", "gram"])
@pytest.mark.parametrize("kind", SOME_KINDS)
def test_forget_leaves_the_adapter_of_a_device_that_deleted_the_block(
    kind: str, path: str, tmp_path: Path
) -> None:
    learner = joined(adapter={"kind": kind})
    learner.export(tmp_path / "a")
    if path == "gram":
        shutil.rmtree(tmp_path / "a" / BLOCKS)
    report = forget(tmp_path / "a", "d1", tmp_path / "out")
    assert report.path == path and report.residual < 1e-5 and report.survivors == ("d0@0", "d2@0")
    learner.delete_block(OTHERS[0])
    assert torch.allclose(loaded(tmp_path / "out"), logits(learner.model), atol=1e-5)
    if path == "blocks":
        assert report.sha256 == learner.sha256()


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_an_adapter_is_compared_with_the_one_without_a_device(kind: str, tmp_path: Path) -> None:
    """As `unweft ask --without` does: one base model, two adapters, and the base model alone."""
    learner = joined(adapter={"kind": kind})
    learner.export(tmp_path / "a")
    forget(tmp_path / "a", "d1", tmp_path / "out")
    whole = logits(learner.model)
    learner.delete_block(OTHERS[0])
    model: Any = load_adapter(small_loaded().model, tmp_path / "a")
    with model.disable_adapter():
        assert torch.allclose(logits(model), logits(small_loaded().model), atol=1e-5)
    assert torch.allclose(logits(model), whole, atol=1e-5)
    add_adapter(model, tmp_path / "out", "without")
    assert torch.allclose(logits(model), logits(learner.model), atol=1e-5)


def test_the_hashes_of_a_bottleneck_cover_its_kind(tmp_path: Path) -> None:
    """The tensors are those of LoRA. The file of the recipe alone tells the function."""
    learner = joined(adapter={"kind": "bottleneck-relu"})
    learner.export(tmp_path / "a")
    before, about = adapter_hashes.read(tmp_path / "a"), tmp_path / "a" / ABOUT
    about.write_text(about.read_text().replace("bottleneck-relu", "bottleneck-gelu"))
    after = adapter_hashes.read(tmp_path / "a")
    assert before.adapter == learner.sha256() != after.adapter and before.whole != after.whole
    for key in (OWN, *OTHERS):
        assert before.merged[key] != after.merged[key]
    joined().export(tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / WEIGHTS)
    assert adapter_sha256(tmp_path / "lora") == tensors_sha256(tensors)  # as before there were kinds
    assert tensors_sha256(tensors, KINDS["vera"]) == tensors_sha256(tensors)


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_the_hashes_of_single_blocks_are_those_of_the_learner(kind: str, tmp_path: Path) -> None:
    learner = joined(adapter={"kind": kind})
    learner.export(tmp_path / "a")
    found = adapter_hashes.read(tmp_path / "a")
    assert found.merged == found.apart and not found.larger
    for key in OTHERS:
        learner.delete_block(key)
    assert found.merged[OWN] == learner.sha256()
