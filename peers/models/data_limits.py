"""Checks of data against the limits of a base model: tokens and positions.

Data beyond a limit would end a device during a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from peers.errors import InputError
from peers.models import vision
from peers.models.checks import compute_logits, embedding_rows, max_positions
from peers.tasks import Batch, Encoded, EncodedImages, logits_width

if TYPE_CHECKING:
    from peers.models.loader import LoadedModel


def check_data(loaded: LoadedModel, parts: Iterable[tuple[str, Batch]]) -> None:
    """Compare each part of the data, (whose data, examples), with the limits of the model.

    Raises InputError for labels beyond the head, for images of a size that the model cannot compute, for
    tokens without a row in the embeddings or in the output head, for examples that are longer than the
    model's positions, and for logits that are not finite.
    """
    longest, owner = None, ""
    for whose, encoded in parts:
        if isinstance(encoded, EncodedImages):
            _check_images(loaded, whose, encoded)
        if not len(encoded) or not isinstance(encoded, Encoded):
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
    compute_logits(loaded.model, longest, loaded.name)


def _check_images(loaded: LoadedModel, whose: str, encoded: EncodedImages) -> None:
    if not len(encoded):
        return
    largest, classes = int(encoded.labels.max()), logits_width(loaded.model)
    if largest >= classes:
        raise InputError(
            f"model.name: the data of {whose} have the label {largest}, and the head of {loaded.name!r} has "
            f"{classes} classes; allowed: labels from 0 to {classes - 1}, or a model with more classes"
        )
    vision.compute_logits(loaded.model, encoded.pixel_values[:1], loaded.name)


def _check_tokens(loaded: LoadedModel, whose: str, encoded: Encoded) -> None:
    wanted = encoded.labels.max()
    for rows, largest, part in (
        (embedding_rows(loaded.model), int(encoded.input_ids.max()), "input embeddings"),
        (logits_width(loaded.model), int(wanted), "output head"),
    ):
        if largest >= rows:
            token = loaded.tokenizer.convert_ids_to_tokens(largest)
            raise InputError(
                f"model.name: the data of {whose} contain the token {token!r} with id {largest}, but the "
                f"{part} of {loaded.name!r} have {rows} rows: its tokenizer has tokens that the model lacks; "
                "allowed: a model that was resized to its tokenizer"
            )
