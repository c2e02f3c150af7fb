"""Registries: a scenario picks an entry by name, and a user's module can add entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from peers.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """Values of one type by name. `name` is the scenario key that picks an entry, e.g. `data.kind`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._known: dict[str, T] = {}

    def add(self, name: str) -> Callable[[T], T]:
        """Decorator: register a value under `name`. Raises InputError if the name is taken."""

        def register(value: T) -> T:
            if name in self._known:
                raise InputError(f"{self.name}: {name!r} is registered already; choose another name")
            self._known[name] = value
            return value

        return register

    def get(self, name: str) -> T:
        """The value of `name`. Raises InputError for an unknown name; the message lists the known ones."""
        try:
            return self._known[name]
        except KeyError:
            known = ", ".join(self.names()) or "none"
            raise InputError(f"{self.name}: {name!r} is not known; known are: {known}") from None

    def names(self) -> list[str]:
        """The known names, sorted."""
        return sorted(self._known)

    def __contains__(self, name: object) -> bool:
        return name in self._known
