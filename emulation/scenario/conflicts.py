"""Keys whose values another setting of the scenario excludes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# Key, value (false: not in use), reason, and the value without it.
Conflict = tuple[str, str | float | bool, str, str]
Problems = Iterator[tuple[str, str]]


def conflict_problems(conflicts: Iterable[Conflict], setting: str, instead: str) -> Problems:
    """A pair for each value in use: the key path, and a text with the value and the allowed values.

    setting: what excludes the values. instead: the value of this setting that excludes none.
    """
    for key, value, why, off in conflicts:
        if value:
            shown = value if isinstance(value, str) else str(value).lower()
            yield key, f"{shown!r} with {setting}, {why}; allowed: {off}, or {instead}"
