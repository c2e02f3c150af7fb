"""Log-probabilities of the tokens of responses: the raw material of the metrics of unlearning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from torch import Tensor

from peers.tasks import Batch, Example, TokenTable, encode, lacks_end, score_tokens
from peers.tasks.encode import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenScores:
    """One example, by token of its response, with the end token last if `ends`.

    logp: natural logarithm of the probability of the token, float32 [m]. hit: the token is the most likely
    one, bool [m].
    """

    logp: Tensor
    hit: Tensor
    ends: bool

    @property
    def loss(self) -> float:
        """Mean nats per token, the end token included."""
        return -float(self.logp.mean())

    @property
    def known(self) -> int:
        """How many of the first tokens are the most likely ones: greedy decoding generates them."""
        return sum(1 for _ in takewhile(bool, self.hit.tolist()))

    def text(self) -> TokenScores:
        """The same without the end token."""
        return TokenScores(self.logp[:-1], self.hit[:-1], False) if self.ends else self


def token_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    max_length: int,
) -> list[TokenScores]:
    """The scores of each example by teacher forcing, in order."""
    if not examples:
        return []
    encoded = encode(examples, tokenizer, max_length)
    return by_example(examples, encoded, score_tokens(model, encoded), tokenizer)


def by_example(
    examples: Sequence[Example],
    encoded: Batch,
    scores: TokenTable,
    tokenizer: PreTrainedTokenizerBase,
) -> list[TokenScores]:
    """The scores of each example, out of a table with the same rows."""
    ends = [example.ends and not lacks_end([example], tokenizer) for example in examples]
    rows = zip(*scores, encoded.wanted() != IGNORED, ends, strict=True)
    return [TokenScores(logp[counts], hit[counts], end) for logp, hit, counts, end in rows]
