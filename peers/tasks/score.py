"""Accuracy and loss of a model on examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from peers.tasks.encode import IGNORED, Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS_CEILING = 1 << 26  # logits at once (256 MiB in float32): a large vocabulary gets smaller batches


@dataclass(frozen=True)
class Score:
    """accuracy: share of known examples. loss: mean nats per response token. n: examples; both nan for 0."""

    accuracy: float
    loss: float
    n: int


def evaluate(model: PreTrainedModel, encoded: Encoded, batch: int = 256) -> Score:
    """Score by teacher forcing. An example is known if each of its response tokens is the most likely one.

    Computes on the device of the model's first parameter, without dropout. The model keeps its mode.
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
    """Known examples, sum of the loss over response tokens, and number of response tokens."""
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
