"""The loss of a causal language model, computed from its logits.

The `loss` of a model class is not used. Some classes compare each logit with the token at the same place and
leave the shift to the caller (BART's decoder). Others add further terms (routers of experts).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional

from peers.tasks.encode import IGNORED

if TYPE_CHECKING:
    from peers.tasks.encode import Encoded


def predictions(model: Any, batch: Encoded) -> tuple[Tensor, Tensor]:
    """The logits of a batch, float32 [n, L, V], and the token that each of them has to predict, [n, L].

    That is the label of the next position. It is -100 at the last position, which has no next one.
    """
    logits: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return logits.float(), functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)


def mean_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean nats per response token, of what `predictions` returns."""
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)


def losses(logits: Tensor, wanted: Tensor) -> Tensor:
    """Summed nats of the response tokens of each example, [n], of what `predictions` returns."""
    nats = functional.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")
    return nats.sum(dim=1)
