"""Answers that a model generates, and their ROUGE-L recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from peers.tasks import Encoded, Example, PrefixedModel, encode, lacks_end, pad_id, with_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 32
MORE = 8  # tokens more than the expected response has: a longer answer is shown as far as this


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    max_length: int,
    known: Sequence[int] | None = None,
) -> list[str]:
    """What the model answers to each prompt, by greedy decoding. Ends at the end token, or somewhat later
    than the expected response.

    known: how many tokens of each expected response are the most likely ones, given the tokens before them.
    Greedy decoding would generate them, so the answer begins with them. None: 0 for each.
    """
    if not examples:
        return []
    texts = encode(examples, tokenizer, max_length)
    ends = [example.ends and not lacks_end([example], tokenizer) for example in examples]
    asked = [_Asked.of(texts, i, ends[i], known[i] if known else 0) for i in range(len(texts))]
    open_ones = sorted((i for i, one in enumerate(asked) if one.left), key=lambda i: asked[i].left)
    written = [one.answer for one in asked]
    if open_ones:
        prefixed = with_prefix(model, texts)
        for start in range(0, len(open_ones), BATCH):
            rows = open_ones[start : start + BATCH]
            for i, more in zip(rows, _generate(prefixed, tokenizer, [asked[i] for i in rows]), strict=True):
                # Cut to the length of its own response: an answer does not depend on the others of its batch.
                written[i] = [*written[i], *more[: asked[i].left]]
    said: list[str] = tokenizer.batch_decode(written, skip_special_tokens=True)
    return [text.strip() for text in said]


@dataclass(frozen=True)
class _Asked:
    """A prompt, the first tokens of its answer, how many tokens may follow, and the token that ends it."""

    prompt: list[int]
    answer: list[int]
    left: int
    end: int | None

    @classmethod
    def of(cls, texts: Encoded, row: int, ends: bool, known: int) -> _Asked:
        labels, mask = texts.labels[row], texts.attention_mask[row].bool()
        response, prompt = labels[labels >= 0].tolist(), texts.input_ids[row][mask & (labels < 0)].tolist()
        end = response[-1] if ends else None
        left = 0 if ends and known == len(response) else len(response) - known + MORE
        return cls(prompt, response[:known], left, end)


def _generate(
    prefixed: PrefixedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[_Asked]
) -> list[list[int]]:
    """The tokens after the prompt and the first tokens of each answer. Padding is after the prefix."""
    shared, pad = prefixed.length, pad_id(tokenizer)
    begun = [one.prompt + one.answer for one in asked]
    width = max(map(len, begun))
    ids = torch.tensor([ids[:shared] + [pad] * (width - len(ids)) + ids[shared:] for ids in begun])
    mask = torch.tensor(
        [[1] * shared + [0] * (width - len(ids)) + [1] * (len(ids) - shared) for ids in begun]
    )
    cache = prefixed.cache(len(begun))
    written = prefixed.model.generate(
        input_ids=ids.to(prefixed.device),
        attention_mask=mask.to(prefixed.device),
        max_new_tokens=max(one.left for one in asked),
        do_sample=False,
        # Some models set others: the answer would not be greedy.
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        pad_token_id=pad,
        eos_token_id=sorted({one.end for one in asked if one.end is not None}) or None,
        **({} if cache is None else {"past_key_values": cache}),
    )
    tokens: list[list[int]] = written[:, width:].tolist()
    return tokens


def rouge_l_recall(expected: Sequence[str], said: Sequence[str]) -> list[float]:
    """ROUGE-L recall with stemming, by answer: the longest common subsequence / words of the expected one.

    The library rouge-score is what TOFU and open-unlearning use (Lin, 2004).
    """
    from absl import logging
    from rouge_score.rouge_scorer import RougeScorer

    logging.set_verbosity(logging.WARNING)  # it announces its tokenizer
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(expected, said, strict=True)
    return [float(scorer.score(one, other)["rougeL"].recall) for one, other in pairs]
