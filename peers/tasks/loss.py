"""The loss of a model, computed from its logits: cross entropy of the classes or tokens to predict.

The `loss` of a model class is not used. Some classes compare each logit with the token at the same place and
leave the shift to the caller (BART's decoder). Others add further terms (routers of experts).
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from peers.tasks.encode import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peers.tasks.batch import Batch

MANY = 1 << 22  # logits (16 MiB in float32): fewer cost next to nothing


def predictions(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits of a batch, float32 [n, L, V], and the class that each of them has to predict, [n, L].

    The logits include the batch's `logit_shift`.

    For text, V tokens are the classes, and L is the number of positions. An image has L = 1. Of a text with
    many logits, L leaves out the first positions that predict no token of a response.
    """
    wanted = batch.wanted()
    first = first_wanted(wanted) if wanted.numel() * logits_width(model) > MANY else 0
    kept = keep_logits(model, wanted.shape[1] - first) if first else {}
    logits: Tensor = model(**batch.inputs(), **kept).logits
    wanted = wanted[:, first:] if kept else wanted
    logits = logits.float().view(*wanted.shape, -1)
    return logits if batch.logit_shift is None else logits + batch.logit_shift, wanted


def first_wanted(wanted: Tensor) -> int:
    """The first position at which any example has a class to predict; the last one if none has."""
    places = (wanted != IGNORED).any(dim=0).nonzero()
    return int(places[0]) if len(places) else wanted.shape[1] - 1


def keep_logits(model: nn.Module, positions: int) -> dict[str, int]:
    """The argument that limits the output head to the last `positions`, for models of text that have it."""
    inner = getattr(model, "get_base_model", lambda: model)()  # PEFT passes all arguments on
    return {"logits_to_keep": positions} if "logits_to_keep" in signature(inner.forward).parameters else {}


def logits_width(model: PreTrainedModel) -> int:
    """The number of tokens or classes that the output head scores. Models have it in different places."""
    head = getattr(model.get_output_embeddings(), "weight", None)
    if head is not None:
        return int(head.shape[0])
    config = model.config.get_text_config()
    return int(getattr(config, "vocab_size", config.num_labels))


def mean_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean nats per response token (or image), of what `predictions` returns."""
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)


def losses(logits: Tensor, wanted: Tensor) -> Tensor:
    """Summed nats of the response tokens of each example, [n], of what `predictions` returns."""
    nats = functional.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")
    return nats.sum(dim=1)
