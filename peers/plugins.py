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
        except Exception as error:  # whatever a user's module raises
            why = f"{type(error).__name__}: {error}"
            raise InputError(
                f"plugins: {name!r} cannot be imported ({why}); allowed: modules on the path"
            ) from None
