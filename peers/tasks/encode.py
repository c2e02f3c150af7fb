"""Examples as tensors for a causal language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from peers.errors import InputError
from peers.tasks.base import Example
from peers.tasks.batch import Batch
from peers.tasks.chat import chat_prompt, has_template, turn_end
from peers.tasks.cut_prompt import cut_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of a position without loss, as in torch and transformers


@dataclass(frozen=True)
class Encoded:
    """n examples, right-padded to the longest (L tokens), on the CPU.

    input_ids: [n, L] int64. attention_mask: [n, L] int64, 0 on padding. labels: [n, L] int64, the token on
    response positions (not shifted), else -100. truncated: how many prompts `encode` has cut; 0 in a part.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    truncated: int = field(default=0, kw_only=True)

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def rows(self, indices: Tensor) -> Encoded:
        """The examples at `indices` ([m] int64), cut to the length of the longest."""
        mask = self.attention_mask[indices]
        length = int(mask.sum(dim=1).max()) if len(indices) else 0
        return Encoded(self.input_ids[indices, :length], mask[:, :length], self.labels[indices, :length])

    @property
    def logit_shift(self) -> None:
        """As `Batch.logit_shift`: nothing is added."""
        return None

    def response_tokens(self) -> Tensor:
        """The number of tokens with a loss, int64 []. The first token of a text has none."""
        return (self.labels[:, 1:] != IGNORED).sum()

    def to(self, device: torch.device | str) -> Encoded:
        """A copy on another device."""
        moved = (self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))
        return Encoded(*moved, truncated=self.truncated)

    def inputs(self) -> dict[str, Tensor]:
        """As `Batch.inputs`."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    def wanted(self) -> Tensor:
        """The label of the next position, [n, L]. It is -100 at the last position, which has no next one."""
        return functional.pad(self.labels[:, 1:], (0, 1), value=IGNORED)

    def lengths(self) -> Tensor:
        """As `Batch.lengths`."""
        return self.attention_mask.sum(dim=1)

    def counted(self, positions: int) -> Tensor:
        """As `Batch.counted`: all tokens but padding. An output head may compute the last positions only."""
        return self.attention_mask[:, self.attention_mask.shape[1] - positions :].bool()


@dataclass(frozen=True)
class _Row:
    prompt: list[int]
    response: list[int]
    cut: bool


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token: the tokenizer's own, else its end of text, else 0 (padding is masked)."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a response: the tokenizer's end of text, else its separator, else None."""
    for token in (tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None)):
        if token is not None:
            return int(token)
    return None


def encoding_notes(parts: Mapping[str, Batch], no_end: bool, max_length: int) -> list[str]:
    """Lines that say what `encode` did to the data beside encoding them. parts: by whose data they are.

    no_end: responses should end, and the tokenizer has no token for that.
    """
    cut = [f"{e.truncated} of {len(e)} examples of {whose}" for whose, e in parts.items() if e.truncated]
    notes = [
        f"data.max_length: cut to {max_length} tokens, at the left of the prompt: " + ", ".join(cut)
    ] * bool(cut)
    if no_end:
        notes.append("model.name: the tokenizer has no token for the end of a text: no end is learnt")
    return notes


def lacks_end(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether an example ends, and the tokenizer has no token for that."""
    return end_id(tokenizer) is None and any(example.ends for example in examples)


def encode(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Tokens of prompt and response, at most `max_length` per example: a long prompt is cut (cut_prompt.py).

    If an example `ends`, the end of a turn or `end_id` becomes part of the response. Raises InputError for a
    response without tokens, with unknown words, or without room for one token of prompt.
    """
    form = _Form.of(examples, tokenizer)
    rows = [_row(example, form, tokenizer, max_length) for example in examples]
    shape = (len(rows), max((len(row.prompt) + len(row.response) for row in rows), default=0))
    ids = torch.full(shape, pad_id(tokenizer), dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    for i, row in enumerate(rows):
        length = len(row.prompt) + len(row.response)
        ids[i, :length] = torch.tensor(row.prompt + row.response)
        mask[i, :length] = 1
        labels[i, len(row.prompt) : length] = torch.tensor(row.response)
    return Encoded(ids, mask, labels, truncated=sum(row.cut for row in rows))


@dataclass(frozen=True)
class _Form:
    """What a tokenizer adds: tokens `before` a text, and the end of a chat's turn (None: `end_id`)."""

    before: list[int]
    turn_end: int | None

    @classmethod
    def of(cls, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> _Form:
        before = _put_before(examples[0].response, tokenizer) if examples else []
        chats = any(example.messages for example in examples)
        return cls(before, turn_end(tokenizer) if chats else None)


def _row(example: Example, form: _Form, tokenizer: PreTrainedTokenizerBase, max_length: int) -> _Row:
    response = _response_tokens(example, form, tokenizer)
    prompt = _prompt_tokens(example, form.before, tokenizer)
    room = max_length - len(response)
    if len(prompt) <= room:
        return _Row(prompt, response, cut=False)
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", ()))
    special.discard(tokenizer.unk_token_id)  # it stands for a word of the text
    newlines = {token for token in set(prompt) - special if "\n" in tokenizer.decode([token])}
    kept, least = cut_prompt(prompt, room, special, newlines)
    if kept is None:
        raise InputError(
            f"data.max_length: {max_length} has no room for the {len(response)} tokens of response "
            f"{example.response[:40]!r} and {least} of its prompt; "
            f"allowed: {len(response) + least} or more"
        )
    return _Row(kept, response, cut=True)


def _prompt_tokens(example: Example, before: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Never empty: the first token of the response is predicted from the token before it.

    The special tokens that the tokenizer puts `before` a text stay; a chat template writes them itself. Those
    that it puts after a text are left out, since the response follows. A special token that is written in the
    prompt is neither.
    """
    if example.messages:
        text = chat_prompt(example.messages, tokenizer)
        before = [] if has_template(tokenizer) else before
    else:
        text = example.prompt
    ids: list[int] = [*before, *tokenizer.encode(text, add_special_tokens=False)]
    if ids:
        return ids
    start = tokenizer.bos_token_id
    return [pad_id(tokenizer) if start is None else int(start)]


def _put_before(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before a text, which must not be empty."""
    alone: list[int] = tokenizer.encode(text, add_special_tokens=False)
    whole: list[int] = tokenizer.encode(text)
    for start in range(len(whole) - len(alone) + 1):
        if whole[start : start + len(alone)] == alone:
            return whole[:start]
    raise InputError(
        f"data: the tokenizer of the model puts special tokens inside {text[:40]!r}; "
        "allowed: tokenizers that put them before and after a text"
    )


def _response_tokens(example: Example, form: _Form, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # In the plain form of a chat the response follows "Answer:", so that a space belongs to it.
    space = " " * bool(example.messages and not has_template(tokenizer))
    ids: list[int] = tokenizer.encode(space + example.response, add_special_tokens=False)
    if not ids:
        raise InputError(f"data: response {example.response!r} has no tokens in the model's vocabulary")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        # All unknown words share one token. A model that learnt this token would seem to know every answer.
        raise InputError(
            f"data: response {example.response[:40]!r} has words that the vocabulary of the model lacks; "
            "allowed: known words, or a model whose tokenizer spells any text"
        )
    end = form.turn_end if example.messages and form.turn_end is not None else end_id(tokenizer)
    return [*ids, end] if example.ends and end not in (None, ids[-1]) else ids
