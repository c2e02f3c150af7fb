"""Refuses keys of `data` that a task would ignore."""

from __future__ import annotations

from peers.config import DataConfig
from peers.errors import InputError

OF_TABLES = ("columns", "held_out", "sizes", "empty")  # of tasks whose examples are dealt (partition.py)
OF_NAMED = ("subset", "split", "columns")  # of `dataset`


def check_unused(config: DataConfig, *keys: str) -> None:
    """Raises InputError for a key that is not at its default: the task of `config.kind` ignores it."""
    for key in keys:
        value, default = getattr(config, key), DataConfig.model_fields[key].default
        if value != default:
            raise InputError(
                f"data.{key}: {value!r} does not apply to data.kind {config.kind!r}; allowed: {default!r}"
            )
