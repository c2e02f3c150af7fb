"""The loss of a model, computed from its logits: cross entropy of the classes or tokens to predict.

The `loss` of a model class is not used. Some classes compare each logit with the token at the same place and
leave the shift to the caller (BART's decoder). Others add further terms (routers of experts).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional

from peers.tasks.encode import IGNORED

if TYPE_CHECKING:
    from peers.tasks.batch import Batch


def predictions(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits of a batch, float32 [n, L, V], and the class that each of them has to predict, [n, L].

    For text, V tokens are the classes, and L is the number of positions. An image has L = 1.
    """
    logits: Tensor = model(**batch.inputs()).logits
    wanted = batch.wanted()
    return logits.float().view(*wanted.shape, -1), wanted


def mean_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean nats per response token (or image), of what `predictions` returns."""
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
