"""A language model whose logits are a table, and questions whose answers it knows in part.

The logits are sums of sines. They do not depend on the random generator of a version of torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from emulation.analysis.metric_suite import Sets
from peers.tasks import Encoded, Example, encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAMES = [f"q{i}" for i in range(25)]  # the first word of each prompt
SENTENCE = "the city cities river rivers lives lived in near of green greener house houses old was born"
WORDS = SENTENCE.split()
LONGEST = 64  # tokens of a text
PAD, END = 1, 2


def tokenizer() -> PreTrainedTokenizerBase:
    """One token for each word."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<pad>", "<eos>", *NAMES, *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )


def sets() -> Sets:
    """Two shards, control examples and two utility sets. Prompts have 1 to 4 words, responses 1 to 7.

    The set `authors` has no paraphrases, as in the files of TOFU.
    """
    authors = [replace(example, paraphrase="") for example in _examples(range(21, 25))]
    return Sets(
        {"d0": _examples(range(6)), "d1": _examples(range(6, 11))},
        _examples(range(11, 16)),
        {"world": _examples(range(16, 21)), "authors": authors},
    )


def model(phase: float, known: float) -> PreTrainedModel:
    """A model with logits of its own. phase: of the sines.

    known: what is added, on average, to the logits of the responses' tokens. Control examples get 1 less.
    """
    examples = sets()
    some = [e for part in (*examples.shards.values(), *examples.utility.values()) for e in part]
    table = _table(phase)
    _teach(table, encode(some, tokenizer(), LONGEST), phase, known)
    _teach(table, encode(examples.control, tokenizer(), LONGEST), phase, known - 1)
    return cast("PreTrainedModel", FixedLogits(table))


class FixedLogits(nn.Module):
    """Its logits are table[first token of the text, position], of shape [V, L, V].

    Texts may be padded at either side.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table
        self.head = nn.Linear(1, len(table), bias=False)
        self.device = torch.device("cpu")

    def get_output_embeddings(self) -> nn.Module:
        """Its weight has as many rows as there are tokens."""
        return self.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        """Logits of each position, [n, L, V]."""
        start = attention_mask.int().argmax(dim=1, keepdim=True)
        position = (torch.arange(input_ids.shape[1]) - start).clamp(min=0)
        return SimpleNamespace(logits=self.table[input_ids.gather(1, start), position])

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, **settings: Any
    ) -> Tensor:
        """The prompts and the greedy answers, padded after their end tokens. settings: have no effect."""
        ended = torch.zeros(len(input_ids), dtype=torch.bool)
        for _ in range(max_new_tokens):
            best = self(input_ids, attention_mask).logits[:, -1].argmax(dim=-1)
            input_ids = torch.cat([input_ids, best.where(~ended, PAD)[:, None]], dim=1)
            attention_mask = torch.cat([attention_mask, attention_mask[:, -1:]], dim=1)
            ended |= best == END
            if ended.all():
                break
        return input_ids


def _examples(numbers: Iterable[int]) -> list[Example]:
    return [
        Example(
            " ".join([NAMES[i], *_words(i, 5, i % 4)]),
            " ".join(_words(i, 0, 1 + 2 * i % 7)),
            True,
            (),
            " ".join(_words(i + 1, 0, 2 + 3 * i % 5)),
            tuple(" ".join(_words(i, k, 1 + (i + k) % 5)) for k in (1, 2, 3)),
        )
        for i in numbers
    ]


def _words(number: int, kind: int, count: int) -> Sequence[str]:
    return [WORDS[(7 * number + 11 * kind + j * (kind + 3)) % len(WORDS)] for j in range(count)]


def _table(phase: float) -> Tensor:
    size = 3 + len(NAMES) + len(WORDS)
    name, position, token = (torch.arange(n, dtype=torch.float64) for n in (size, LONGEST, size))
    waves = 1.7 * name[:, None, None] + 0.9 * position[:, None] + 2.3 * token * (1 + position[:, None] / 7)
    return 2 * torch.sin(waves + phase).float()


def _teach(table: Tensor, texts: Encoded, phase: float, known: float) -> None:
    """Add to the logits of the responses' tokens. A generated answer ends three words later at the latest."""
    for ids, labels in zip(texts.input_ids, texts.labels, strict=True):
        places = (labels >= 0).nonzero().flatten()
        wave = torch.sin(1.1 * ids[0].double() + 2.7 * places.double() + phase)
        table[ids[0], places - 1, labels[places]] += (known + 3 * wave).float()
        table[ids[0], int(places[-1]) + 3 :, END] += 20
