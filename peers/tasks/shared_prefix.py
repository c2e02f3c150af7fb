"""The first tokens that all texts of a batch share, such as a system prompt: the model computes them once."""

from __future__ import annotations

from copy import deepcopy
from inspect import signature
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from peers.tasks.encode import Encoded
from peers.tasks.loss import first_wanted, keep_logits

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

LEAST = 8  # tokens: fewer save nothing
APART = 0.05  # of the norm of the logits: bf16 stays below, and a model that lost its prefix does not
_continues: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class PrefixedModel:
    """A model for texts that begin with the tokens `prefix`, [P] int64; it keeps their keys and values.

    P = 0: it keeps nothing. The weights must not change while this is used.
    """

    def __init__(self, model: PreTrainedModel, prefix: Tensor) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self.length = len(prefix)
        self._cache = _keys_and_values(model, prefix[None].to(self.device)) if self.length else None

    def logits(self, texts: Encoded) -> tuple[Tensor, int]:
        """Logits [n, L - first, V] in the dtype of the model, and `first`: the position of the first of them.

        It is the earliest one that predicts a token of a response.
        """
        first = first_wanted(texts.wanted())
        kept, inputs = texts.input_ids.shape[1] - first, dict(texts.to(self.device).inputs())
        extra: dict[str, Any] = {**keep_logits(self.model, kept)}
        if self.length:
            inputs["input_ids"] = inputs["input_ids"][:, self.length :]
            extra |= {"past_key_values": self.cache(len(texts)), "use_cache": True}
        logits: Tensor = self.model(**inputs, **extra).logits
        return logits[:, -kept:], first

    def cache(self, rows: int) -> Any:
        """Keys and values of the prefix for `rows` texts: a copy, which may grow. None without a prefix."""
        if self._cache is None:
            return None
        cache = deepcopy(self._cache)
        cache.batch_repeat_interleave(rows)
        return cache


def with_prefix(model: PreTrainedModel, texts: Encoded) -> PrefixedModel:
    """The model with the longest prefix that the texts share, if it is worth it and the model allows it.

    The prefix ends before the token that predicts the first token of a response.
    """
    found = _common(texts)
    usable = found >= LEAST and _can_continue(model, texts.rows(torch.arange(2)), found)
    return PrefixedModel(model, texts.input_ids[0, : found * usable])


def _common(texts: Encoded) -> int:
    """The number of first tokens that all texts share. One text alone saves nothing."""
    if len(texts) < 2:
        return 0
    same = (texts.input_ids == texts.input_ids[:1]).all(dim=0).int().cumprod(dim=0)
    return min(int(same.sum()), first_wanted(texts.wanted()))


@torch.no_grad()
def _keys_and_values(model: PreTrainedModel, ids: Tensor) -> Any:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values


def _can_continue(model: PreTrainedModel, texts: Encoded, length: int) -> bool:
    """Whether kept keys and values lead to the same logits. It is tried once for each model.

    A recurrent model is stateful: its state cannot be repeated for texts with padding.
    """
    if model not in _continues:
        caches = {"past_key_values", "use_cache"} <= set(signature(model.forward).parameters)
        stateful = getattr(model, "_is_stateful", True)
        _continues[model] = caches and not stateful and _agrees(model, texts, length)
    return _continues[model]


@torch.no_grad()
def _agrees(model: PreTrainedModel, texts: Encoded, length: int) -> bool:
    prefix = texts.input_ids[0, :length]
    (expected, first), (found, _) = (
        PrefixedModel(model, part).logits(texts) for part in (prefix[:0], prefix)
    )
    counted = texts.attention_mask[:, first:].bool().to(found.device)
    apart = (found.float() - expected.float())[counted].norm()
    return bool(apart <= APART * expected.float()[counted].norm())
