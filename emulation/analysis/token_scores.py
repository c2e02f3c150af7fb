"""Log-probabilities of the tokens of responses: the raw material of the metrics of unlearning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peers.tasks import Encoded, Example, encode, lacks_end, logits_width, predictions
from peers.tasks.encode import IGNORED
from peers.tasks.score import LOGITS_CEILING, MAX_BATCH

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

    def text(self) -> TokenScores:
        """The same without the end token."""
        return TokenScores(self.logp[:-1], self.hit[:-1], False) if self.ends else self


@torch.no_grad()
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
    per_example = encoded.input_ids.shape[1] * logits_width(model)
    rows = max(1, min(MAX_BATCH, LOGITS_CEILING // per_example))
    ends = [example.ends and not lacks_end([example], tokenizer) for example in examples]
    found = []
    for part in torch.split(torch.arange(len(encoded)), rows):
        for row, (logp, hit) in zip(part.tolist(), _scored(model, encoded.rows(part)), strict=True):
            found.append(TokenScores(logp, hit, ends[row]))
    return found


def _scored(model: PreTrainedModel, batch: Encoded) -> list[tuple[Tensor, Tensor]]:
    logits, wanted = predictions(model, batch.to(next(model.parameters()).device))
    chosen = wanted.clamp(min=0).unsqueeze(-1)
    logp = logits.gather(-1, chosen).squeeze(-1) - logits.logsumexp(-1)
    hit, counts = logits.argmax(-1) == wanted, wanted != IGNORED
    return [(logp[i, c].cpu(), hit[i, c].cpu()) for i, c in enumerate(counts)]
