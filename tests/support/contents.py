"""The objects that an object contains, for tests that look for leftovers of a deleted block."""

from __future__ import annotations

from collections.abc import Iterator


def everything(value: object) -> Iterator[object]:
    """All objects that an object contains, at any depth."""
    yield value
    if isinstance(value, dict):
        inner: list[object] = [*value.keys(), *value.values()]
    elif isinstance(value, (tuple, list, set)):
        inner = list(value)
    else:
        slots = getattr(type(value), "__slots__", ())
        inner = [*getattr(value, "__dict__", {}).values(), *(getattr(value, name) for name in slots)]
    for one in inner:
        yield from everything(one)
