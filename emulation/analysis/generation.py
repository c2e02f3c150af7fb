"""Answers that a model generates, and their ROUGE-L recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from peers.tasks import Example, encode, pad_id, prompt_ids

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
) -> list[str]:
    """What the model answers to each prompt, by greedy decoding. Ends at the end token, or somewhat later
    than the expected response.
    """
    by_length = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt))
    found = [""] * len(examples)
    for start in range(0, len(by_length), BATCH):
        rows = by_length[start : start + BATCH]
        part = [examples[i] for i in rows]
        for i, text in zip(rows, _generate(model, tokenizer, part, max_length), strict=True):
            found[i] = text
    return found


def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: Sequence[Example], max_length: int
) -> list[str]:
    encoded = encode(part, tokenizer, max_length)
    most = [int(count) + MORE for count in (encoded.labels >= 0).sum(dim=1)]
    ends = sorted({int(row[row >= 0][-1]) for row, e in zip(encoded.labels, part, strict=True) if e.ends})
    prompts = [prompt_ids(example, tokenizer, max_length) for example in part]
    width, pad = max(map(len, prompts)), pad_id(tokenizer)
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    device = next(model.parameters()).device
    written = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=max(most),
        do_sample=False,
        use_cache=True,
        pad_token_id=pad,
        eos_token_id=ends or None,
    )
    # Cut to the length of its own response: an answer does not depend on the others of its batch.
    tokens = [row[: most[i]].tolist() for i, row in enumerate(written[:, width:].cpu())]
    texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]


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
