"""Accuracy and loss of a model on examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peers.tasks.batch import Batch
from peers.tasks.encode import IGNORED
from peers.tasks.loss import losses, predictions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS_CEILING = 1 << 26  # logits at once (256 MiB in float32): a large vocabulary gets smaller batches
MAX_BATCH = 256


@dataclass(frozen=True)
class Score:
    """accuracy: share of known examples. loss: mean nats per response token. n: examples; both nan for 0."""

    accuracy: float
    loss: float
    n: int


def evaluate(model: PreTrainedModel, encoded: Batch, batch: int = MAX_BATCH) -> Score:
    """Score by teacher forcing. The model keeps its mode."""
    n = len(encoded)
    if n == 0:
        return Score(float("nan"), float("nan"), 0)
    was_training = model.training
    model.eval()
    try:
        known, loss, tokens = score_examples(model, encoded, batch)
    finally:
        model.train(was_training)
    return Score(float(known.float().mean()), float(loss.sum() / tokens.sum()), n)


@torch.no_grad()
def score_examples(
    model: PreTrainedModel, encoded: Batch, batch: int = MAX_BATCH
) -> tuple[Tensor, Tensor, Tensor]:
    """Three tensors [n], by example: known, summed loss in nats, number of response tokens (1 for an image).

    An example is known if each of its response tokens is the most likely one. Computes on the device of the
    model's first parameter.
    """
    per_example = encoded.wanted().shape[1] * logits_width(model)
    rows = max(1, min(batch, LOGITS_CEILING // per_example))
    parts = [_score_batch(model, encoded.rows(i)) for i in torch.split(torch.arange(len(encoded)), rows)]
    known, loss, tokens = (torch.cat(column) for column in zip(*parts, strict=True))
    return known, loss, tokens


def logits_width(model: PreTrainedModel) -> int:
    """The number of tokens or classes that the output head scores. Models have it in different places."""
    head = getattr(model.get_output_embeddings(), "weight", None)
    if head is not None:
        return int(head.shape[0])
    config = model.config.get_text_config()
    return int(getattr(config, "vocab_size", config.num_labels))


def _score_batch(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    logits, wanted = predictions(model, batch.to(next(model.parameters()).device))
    counts = wanted != IGNORED
    known = ((logits.argmax(dim=-1) == wanted) | ~counts).all(dim=1)
    return known.cpu(), losses(logits, wanted).cpu(), counts.sum(dim=1).cpu()
