"""How well a model knows given examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from peers.tasks.encode import IGNORED, Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS_CEILING = (
    1 << 26
)  # most logits held at once (256 MiB in float32): large vocabularies get smaller batches


@dataclass(frozen=True)
class Score:
    """accuracy: share of the n examples known; loss: mean nats per response token. Both nan when n is 0."""

    accuracy: float
    loss: float
    n: int


def evaluate(model: PreTrainedModel, encoded: Encoded, batch: int = 256) -> Score:
    """Scores by teacher forcing: an example is known if each of its response tokens is the most likely one.

    Works on the device of the model's first parameter, without dropout; leaves the model's mode as it was.
    """
    n = len(encoded)
    if n == 0:
        return Score(float("nan"), float("nan"), 0)
    per_example = encoded.input_ids.shape[1] * int(model.config.vocab_size)
    rows = max(1, min(batch, LOGITS_CEILING // per_example))
    was_training = model.training
    model.eval()
    try:
        parts = [_score(model, encoded.rows(indices)) for indices in torch.split(torch.arange(n), rows)]
    finally:
        model.train(was_training)
    known, loss, tokens = (sum(column) for column in zip(*parts, strict=True))
    return Score(known / n, loss / tokens, n)


@torch.no_grad()
def _score(model: PreTrainedModel, part: Encoded) -> tuple[int, float, int]:
    """Examples known, summed loss and number of response tokens."""
    part = part.to(next(model.parameters()).device)
    logits: Tensor = (
        model(input_ids=part.input_ids, attention_mask=part.attention_mask).logits[:, :-1].float()
    )
    labels = part.labels[:, 1:]
    counts = labels != IGNORED
    known = ((logits.argmax(dim=-1) == labels) | ~counts).all(dim=1).sum()
    loss = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return int(known), float(loss), int(counts.sum())
