"""Small random models of a few families, saved as ordinary Hugging Face folders, each with a tokenizer.

The last three are models of other kinds: an encoder, the decoder of an encoder-decoder model, whose class
leaves the shift of labels to the caller, and a language model with a vision part.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Family = Literal["llama", "qwen2", "gpt2", "bart", "bert", "gemma3-vision"]
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


def _bart(vocabulary: int) -> PreTrainedModel:
    config = BartConfig(
        vocab_size=vocabulary,
        d_model=32,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        is_decoder=True,
        is_encoder_decoder=False,
        forced_eos_token_id=None,
        decoder_start_token_id=2,
        **dict.fromkeys(("bos_token_id", "pad_token_id"), 1),
        eos_token_id=2,
    )
    return BartForCausalLM(config)


def _bert(vocabulary: int) -> PreTrainedModel:
    sizes = {k: v for k, v in _shape().items() if k != "num_key_value_heads"}
    return BertForMaskedLM(BertConfig(vocab_size=vocabulary, **sizes, pad_token_id=1))


def _gemma3_vision(vocabulary: int) -> PreTrainedModel:
    text = Gemma3TextConfig(
        vocab_size=vocabulary, head_dim=8, **_shape(), pad_token_id=1, bos_token_id=None, eos_token_id=2
    )
    vision = SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        vision_use_head=False,
    )
    marks = {"boi_token_index": 3, "eoi_token_index": 4, "image_token_index": 5}
    parts = {"text_config": text.to_dict(), "vision_config": vision.to_dict()}
    return Gemma3ForConditionalGeneration(Gemma3Config(**parts, mm_tokens_per_image=4, **marks))


def _shape() -> dict[str, int]:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }


BUILDERS: dict[Family, Callable[[int], PreTrainedModel]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "gpt2": _gpt2,
    "bart": _bart,
    "bert": _bert,
    "gemma3-vision": _gemma3_vision,
}


def save_small_model(folder: Path, family: Family, seed: int = 0, pad: bool = True, eos: bool = True) -> Path:
    """Hidden 32, 3 layers, random weights from `seed`, saved with a tokenizer; returns the folder."""
    tokenizer = small_tokenizer(pad, eos)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BUILDERS[family](len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TEMPLATE = (
    "{% for m in messages %}{{ ' <s> ' + m['role'] + ' <n> ' + m['content'] + ' <e> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <s> assistant <n> ' }}{% endif %}"
)


def chat_tokenizer() -> Any:
    """A tokenizer with a chat template and special tokens for the begin and the end of a turn."""
    made = small_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<s>", "<e>"]})
    made.add_tokens(["user", "assistant", "<n>", "<n>\n"])
    made.chat_template = TEMPLATE
    return made
