"""Small random models of three families, saved as ordinary Hugging Face folders, each with a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Family = Literal["llama", "qwen2", "gpt2"]
SENTENCE = "alpha beta gamma delta one two three four lives in the home of is a red green blue"
WORDS = SENTENCE.split()


def small_tokenizer(pad: bool = True, eos: bool = True) -> PreTrainedTokenizerBase:
    """One token for each of WORDS. pad, eos: the tokenizer has such a token."""
    special = {"pad_token": "<pad>"} if pad else {}
    special |= {"eos_token": "<eos>"} if eos else {}
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<pad>", "<eos>", *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)


def _llama(vocabulary: int) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **_shape(), bos_token_id=None, eos_token_id=2))


def _qwen2(vocabulary: int) -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, **_shape(), bos_token_id=None, eos_token_id=2))


def _gpt2(vocabulary: int) -> PreTrainedModel:
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **sizes, bos_token_id=None, eos_token_id=2))


def _shape() -> dict[str, int]:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }


BUILDERS: dict[Family, Callable[[int], PreTrainedModel]] = {"llama": _llama, "qwen2": _qwen2, "gpt2": _gpt2}


def save_small_model(folder: Path, family: Family, seed: int = 0, pad: bool = True, eos: bool = True) -> Path:
    """Hidden 32, 3 layers, random weights from `seed`, saved with a tokenizer; returns the folder."""
    tokenizer = small_tokenizer(pad, eos)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BUILDERS[family](len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
