"""Special tokens of a prompt and of a tokenizer, and prompts that are cut."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import processors
from transformers import BertTokenizer

from peers.errors import InputError
from peers.tasks import Example, encode, encoding_notes, lacks_end
from tests.support.tiny_models import small_tokenizer


def tokenizer(template: str = "<bos> $A") -> Any:
    """A tokenizer that puts special tokens around a text."""
    made = small_tokenizer()
    made.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": ["<|user|>"]})
    special = [(t, made.convert_tokens_to_ids(t)) for t in ("<bos>", "<eos>") if t in template]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=special
    )
    return made


def tokens(prompt: str, response: str, tokenizer: Any, max_length: int = 16) -> list[str]:
    encoded = encode([Example(prompt, response, ends=True)], tokenizer, max_length)
    found: list[str] = tokenizer.convert_ids_to_tokens(encoded.input_ids[0].tolist())
    return found


@pytest.mark.parametrize("template", ["$A", "$A <eos>", "<bos> $A", "<bos> $A <eos>"])
@pytest.mark.parametrize("prompt", ["alpha", "alpha <eos>", "<eos> alpha", "alpha <eos> <eos>"])
def test_special_tokens_written_in_a_prompt_stay(template: str, prompt: str) -> None:
    before = ["<bos>"] if "<bos>" in template else []
    assert tokens(prompt, "one", tokenizer(template)) == [*before, *prompt.split(), "one", "<eos>"]


def test_a_response_that_ends_itself_ends_once() -> None:
    assert tokens("alpha", "one <eos>", tokenizer()) == ["<bos>", "alpha", "one", "<eos>"]


def test_a_separator_is_the_end_of_a_tokenizer_without_one() -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "capital", "of", "is", "ys", "mu"]
    bert = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    found = tokens("the capital of mu is", "ys", bert)
    assert found == ["[CLS]", "the", "capital", "of", "mu", "is", "ys", "[SEP]"]
    assert not lacks_end([Example("mu", "ys", ends=True)], bert)


def test_a_cut_prompt_keeps_the_special_tokens_at_its_left() -> None:
    prompt = "<|user|> alpha beta gamma delta"
    assert tokens(prompt, "one", tokenizer(), 6) == ["<bos>", "<|user|>", "gamma", "delta", "one", "<eos>"]
    assert tokens(prompt, "one", tokenizer(), 5) == ["<bos>", "<|user|>", "delta", "one", "<eos>"]
    with pytest.raises(InputError, match=r"4 has no room .* 3 of its prompt; allowed: 5 or more"):
        tokens(prompt, "one", tokenizer(), 4)


def test_unknown_words_are_cut_like_other_words() -> None:
    assert tokens("zebra zebra alpha", "one", small_tokenizer(), 4) == ["<unk>", "alpha", "one", "<eos>"]
    assert tokens("zebra alpha beta", "one", small_tokenizer(), 4) == ["alpha", "beta", "one", "<eos>"]


def test_cut_examples_are_counted_and_said() -> None:
    examples = [Example("alpha beta gamma", "one"), Example("alpha", "one"), Example("a a a a", "two")]
    parts = {"d0": encode(examples, small_tokenizer(), 3), "d1": encode(examples[1:2], small_tokenizer(), 3)}
    assert (parts["d0"].truncated, parts["d0"].to("cpu").truncated, parts["d1"].truncated) == (2, 2, 0)
    (note,) = encoding_notes(parts, False, 3)
    assert "cut to 3 tokens" in note and "2 of 3 examples of d0" in note and "d1" not in note
    assert encoding_notes({"d1": parts["d1"]}, False, 3) == []


def test_a_tokenizer_without_any_end_is_said() -> None:
    without = small_tokenizer(eos=False)
    ending, other = [Example("alpha", "one", ends=True)], [Example("alpha", "one")]
    assert lacks_end(ending, without) and not lacks_end(other, without)
    assert not lacks_end(ending, small_tokenizer())
    assert "no end is learnt" in encoding_notes({}, True, 8)[0]
