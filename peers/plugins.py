"""Import of a user's modules, which add entries to the registries (docs/extending.md)."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from peers.errors import InputError


def load(names: Iterable[str]) -> None:
    """Import each module. Raises InputError with the name of a module that cannot be imported."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a user's module may raise anything
            why = f"{type(error).__name__}: {error}"
            raise InputError(
                f"plugins: {name!r} cannot be imported ({why}); allowed: modules on the path"
            ) from None
