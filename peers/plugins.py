"""A user's own modules: importing one lets it add to the registries (docs/extending.md)."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from peers.errors import InputError


def load(names: Iterable[str]) -> None:
    """Import each module. Raises InputError naming the one that cannot be imported."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(
                f"plugins: {name!r} cannot be imported ({error}); allowed: modules on the path"
            ) from None
