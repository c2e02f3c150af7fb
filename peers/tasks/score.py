"""Accuracy, loss and scores of single tokens of a model on examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from peers.tasks.batch import Batch
from peers.tasks.encode import IGNORED, Encoded
from peers.tasks.loss import logits_width, predictions
from peers.tasks.shared_prefix import with_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS_CEILING = 1 << 25  # logits at once (128 MiB in float32): a large vocabulary gets smaller batches
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


def score_examples(
    model: PreTrainedModel, encoded: Batch, batch: int = MAX_BATCH
) -> tuple[Tensor, Tensor, Tensor]:
    """Three tensors [n], by example: known, summed loss in nats, number of response tokens (1 for an image).

    An example is known if each of its response tokens is the most likely one. Computes on the device of the
    model's first parameter.
    """
    return score_tokens(model, encoded, batch).by_example(encoded)


class TokenTable(NamedTuple):
    """By example and position, [n, L]. logp: the logarithm of the probability of the wanted class, float32.
    hit: whether it is the most likely one, bool. A position without a wanted class has 0 and True.
    """

    logp: Tensor
    hit: Tensor

    def by_example(self, encoded: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """As `score_examples`, of the examples that were scored."""
        return self.hit.all(dim=1), -self.logp.sum(dim=1), (encoded.wanted() != IGNORED).sum(dim=1)


@torch.no_grad()
def score_tokens(model: PreTrainedModel, encoded: Batch, batch: int = MAX_BATCH) -> TokenTable:
    """Scores by teacher forcing, on the CPU.

    Examples of similar lengths are computed together. Texts share the work on a common beginning.
    """
    wanted = encoded.wanted()
    logp, hit = torch.zeros(wanted.shape), torch.ones(wanted.shape, dtype=torch.bool)
    if not len(encoded):
        return TokenTable(logp, hit)
    texts = with_prefix(model, encoded) if isinstance(encoded, Encoded) else None
    lengths = encoded.lengths() - (0 if texts is None else texts.length)
    for rows in _similar(lengths, logits_width(model), batch):
        part = encoded.rows(rows)
        if texts is not None and isinstance(part, Encoded):
            logits, first = texts.logits(part)
        else:
            logits, first = predictions(model, part.to(next(model.parameters()).device))[0], 0
        i, position = (part.wanted()[:, first:] != IGNORED).nonzero(as_tuple=True)
        places = rows[i], position + first
        chosen, classes = logits[i, position].float(), wanted[places].to(logits.device)
        nats = functional.cross_entropy(chosen, classes, reduction="none")
        logp[places], hit[places] = -nats.cpu(), (chosen.argmax(dim=-1) == classes).cpu()
    return TokenTable(logp, hit)


def _similar(lengths: Tensor, width: int, most: int) -> Iterator[Tensor]:
    """The examples in groups of similar lengths: at most `most`, with at most LOGITS_CEILING logits."""
    order = lengths.argsort(stable=True)
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and end - start < most:
            if (end + 1 - start) * int(lengths[order[end]]) * width > LOGITS_CEILING:
                break
            end += 1
        yield order[start:end]
        start = end
