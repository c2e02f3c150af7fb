"""Examples as tensors for a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peers.errors import InputError
from peers.tasks.base import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of a position without loss, as in torch and transformers


@dataclass(frozen=True)
class Encoded:
    """n examples, right-padded to the longest (L tokens), on the CPU.

    input_ids: [n, L] int64. attention_mask: [n, L] int64, 0 on padding. labels: [n, L] int64, the token on
    response positions (not shifted), else -100.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def rows(self, indices: Tensor) -> Encoded:
        """The examples at `indices` ([m] int64), cut to the length of the longest."""
        mask = self.attention_mask[indices]
        length = int(mask.sum(dim=1).max()) if len(indices) else 0
        return Encoded(self.input_ids[indices, :length], mask[:, :length], self.labels[indices, :length])

    def to(self, device: torch.device | str) -> Encoded:
        """A copy on another device."""
        return Encoded(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token: the tokenizer's own, else its end of text, else 0 (padding is masked)."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def encode(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Tokens of prompt and response, at most `max_length` per example: a long prompt is cut from the left.

    If an example `ends`, the tokenizer's end of text (if it has one) becomes part of the response. Raises
    InputError for a response without tokens, with unknown words, or without room for one token of prompt.
    """
    rows = [_tokens(example, tokenizer, max_length) for example in examples]
    shape = (len(rows), max((len(prompt) + len(response) for prompt, response in rows), default=0))
    ids = torch.full(shape, pad_id(tokenizer), dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    for i, (prompt, response) in enumerate(rows):
        length = len(prompt) + len(response)
        ids[i, :length] = torch.tensor(prompt + response)
        mask[i, :length] = 1
        labels[i, len(prompt) : length] = torch.tensor(response)
    return Encoded(ids, mask, labels)


def _tokens(
    example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[int], list[int]]:
    response = _response_tokens(example, tokenizer)
    room = max_length - len(response)
    if room < 1:
        raise InputError(
            f"data.max_length: {max_length} has no room for the {len(response)} tokens of response "
            f"{example.response[:40]!r} and one of its prompt; allowed: {len(response) + 1} or more"
        )
    return _prompt_tokens(example, tokenizer)[-room:], response


def _prompt_tokens(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Never empty: the first token of the response is predicted from the token before it."""
    ids: list[int] = tokenizer.encode(example.prompt)
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]  # some tokenizers end every text, but the response follows
    if ids:
        return ids
    start = tokenizer.bos_token_id
    return [pad_id(tokenizer) if start is None else int(start)]


def _response_tokens(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer.encode(example.response, add_special_tokens=False)
    if not ids:
        raise InputError(f"data: response {example.response!r} has no tokens in the model's vocabulary")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        # All unknown words share one token. A model that learnt this token would seem to know every answer.
        raise InputError(
            f"data: response {example.response[:40]!r} has words that the vocabulary of the model lacks; "
            "allowed: known words, or a model whose tokenizer spells any text"
        )
    if example.ends and tokenizer.eos_token_id is not None:
        ids = [*ids, int(tokenizer.eos_token_id)]
    return ids
