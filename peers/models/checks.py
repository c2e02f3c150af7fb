"""Checks of a base model: it is a causal language model, and the data are within its limits.

A model that fails them would be trained and scored on something else, or would end a device during a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peers.errors import InputError
from peers.tasks import Encoded, logits_width

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from peers.models.loader import LoadedModel

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
    first = _probe(model, tokenizer)
    other = first.clone()
    other[0, -1] = first[0, 0]
    used: set[str] = set()
    hooks = [m.register_forward_hook(_adds(n, used)) for n, m in model.named_modules()]
    try:
        logits = _logits(model, first, name)
    finally:
        for hook in hooks:
            hook.remove()
    moved = (logits - _logits(model, other, name))[:, :-1].abs().max()
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


def check_data(loaded: LoadedModel, parts: Iterable[tuple[str, Encoded]]) -> None:
    """Compare each part of the data, (whose data, examples), with the limits of the model.

    Raises InputError for tokens without a row in the embeddings or in the output head, for examples that are
    longer than the model's positions, and for logits that are not finite.
    """
    longest, owner = None, ""
    for whose, encoded in parts:
        if not len(encoded):
            continue
        _check_tokens(loaded, whose, encoded)
        row = encoded.rows(encoded.attention_mask.sum(dim=1).argmax().reshape(1))
        if longest is None or row.input_ids.shape[1] > longest.shape[1]:
            longest, owner = row.input_ids, whose
    if longest is None:
        return
    length, most = longest.shape[1], max_positions(loaded.model)
    if most is not None and length > most:
        raise InputError(
            f"data.max_length: an example of {owner} has {length} tokens, more than the {most} positions of "
            f"{loaded.name!r}; allowed: data.max_length = {most} or less"
        )
    _logits(loaded.model, longest, loaded.name)


def max_positions(model: PreTrainedModel) -> int | None:
    """The largest number of tokens that the model's configuration declares; None if it declares none."""
    text = model.config.get_text_config()
    declared = [getattr(text, key, None) for key in POSITIONS]
    return min((n for n in declared if isinstance(n, int) and n > 0), default=None)


def _check_tokens(loaded: LoadedModel, whose: str, encoded: Encoded) -> None:
    wanted = encoded.labels.max()
    for rows, largest, part in (
        (_embeddings(loaded.model), int(encoded.input_ids.max()), "input embeddings"),
        (logits_width(loaded.model), int(wanted), "output head"),
    ):
        if largest >= rows:
            token = loaded.tokenizer.convert_ids_to_tokens(largest)
            raise InputError(
                f"model.name: the data of {whose} contain the token {token!r} with id {largest}, but the "
                f"{part} of {loaded.name!r} have {rows} rows: its tokenizer has tokens that the model lacks; "
                "allowed: a model that was resized to its tokenizer"
            )


def _embeddings(model: PreTrainedModel) -> int:
    weight: Any = model.get_input_embeddings().weight
    return int(weight.shape[0])


def _probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Different ordinary tokens, [1, PROBE]: none that stands for an image or for the end of a text."""
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", ()))
    known = sorted(i for i in set(tokenizer.get_vocab().values()) - special if i < _embeddings(model))
    if len(known) < 2:
        raise InputError(
            "model.name: the tokenizer has fewer than two ordinary tokens; allowed: another model"
        )
    length = min(PROBE, max_positions(model) or PROBE)
    return torch.tensor([[known[i * (len(known) - 1) // (PROBE - 1)] for i in range(length)]])


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: Tensor, name: str) -> Tensor:
    ids = ids.to(next(model.parameters()).device)
    try:
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
    # Any error of the model's code: it would end a device at its first step.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"model.name: {name!r} cannot compute a text of {ids.shape[1]} tokens ({reason}); "
            "allowed: causal language models, or a smaller data.max_length"
        ) from error
    if not logits.isfinite().all():
        raise InputError(
            f"model.name: the logits of {name!r} are not finite: its weights are damaged; "
            "allowed: another model"
        )
    return logits


def _adds(name: str, found: set[str]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        found.add(name)

    return hook
