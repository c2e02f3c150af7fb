"""Checks that a base model is a causal language model. Another one would be trained on the wrong thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peers.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBE = 8  # tokens
MOVED = 1e-4  # of the largest logit; an exact causal mask moves earlier logits by 0
POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions", "n_ctx")


def modules_in_use(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> set[str]:
    """The names of the modules that compute something for a text.

    Others belong to images, or to the attention to an encoder. Raises InputError if the model is no causal
    language model: a later token changes the logits of earlier ones, or the logits are not finite.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise no_causal_model(name, "it is an encoder-decoder model")
    first = _probe(model, tokenizer, name)
    other = first.clone()
    other[0, -1] = first[0, 0]
    with called_modules(model) as used:
        logits = compute_logits(model, first, name)
    moved = (logits - compute_logits(model, other, name))[:, :-1].abs().max()
    if moved > MOVED * logits.abs().max():
        raise no_causal_model(
            name,
            "a later token changes the prediction of earlier ones, as in an encoder with is_decoder = false",
        )
    return used


def no_causal_model(name: str, reason: str) -> InputError:
    """The error for a model of another kind."""
    return InputError(
        f"model.name: {name!r} is no causal language model: {reason}; allowed: causal language models"
    )


def max_positions(model: PreTrainedModel) -> int | None:
    """The largest number of tokens that the model's configuration declares; None if it declares none."""
    text = model.config.get_text_config()
    declared = [getattr(text, key, None) for key in POSITIONS]
    return min((n for n in declared if isinstance(n, int) and n > 0), default=None)


def embedding_rows(model: PreTrainedModel) -> int:
    """The number of tokens that the model can read."""
    weight: Any = model.get_input_embeddings().weight
    return int(weight.shape[0])


def _probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> Tensor:
    """Different ordinary tokens, [1, PROBE]: none that stands for an image or for the end of a text.

    There are fewer if the model has fewer positions. The first and the last one differ.
    """
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", ()))
    known = sorted(i for i in set(tokenizer.get_vocab().values()) - special if i < embedding_rows(model))
    if len(known) < 2:
        raise InputError(
            "model.name: the tokenizer has fewer than two ordinary tokens; allowed: another model"
        )
    length = min(PROBE, max_positions(model) or PROBE)
    if length < 2:
        raise InputError(
            f"model.name: {name!r} reads texts of {length} token; allowed: a model of 2 positions or more"
        )
    return torch.tensor([[known[i * (len(known) - 1) // (length - 1)] for i in range(length)]])


@torch.no_grad()
def compute_logits(model: PreTrainedModel, ids: Tensor, name: str) -> Tensor:
    """Logits of one text. Raises InputError if the model cannot compute it, or if they are not finite."""
    ids = ids.to(next(model.parameters()).device)
    return finite_logits(
        lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits,
        name,
        f"a text of {ids.shape[1]} tokens",
        "causal language models, or a smaller data.max_length",
    )


def finite_logits(compute: Callable[[], Tensor], name: str, what: str, allowed: str) -> Tensor:
    """The result of `compute` in float32. Raises InputError for an error of the model and for other values.

    what, allowed: for the error, if the model `name` cannot compute `what`.
    """
    try:
        logits = compute().float()
    # Any error of the model's code: it would end a device at its first step.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"model.name: {name!r} cannot compute {what} ({reason}); allowed: {allowed}"
        ) from error
    if not logits.isfinite().all():
        raise InputError(
            f"model.name: the logits of {name!r} are not finite: its weights are damaged; "
            "allowed: another model"
        )
    return logits


@contextmanager
def called_modules(model: PreTrainedModel) -> Iterator[set[str]]:
    """The names of the modules that the model calls inside."""
    called: set[str] = set()

    def record(name: str) -> Callable[..., None]:
        return lambda module, args, output: called.add(name)

    hooks = [m.register_forward_hook(record(n)) for n, m in model.named_modules()]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()
