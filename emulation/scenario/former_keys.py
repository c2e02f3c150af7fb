"""Scenario keys that have a new spelling. The former spelling still works for one release, with a warning."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from peers.errors import InputError

Keys = tuple[str, ...]
CURRENT: dict[Keys, Keys] = {
    ("correction", "handover"): ("correction", "refit"),
    ("correction", "repay"): ("correction", "offset_overhead"),
}


def current_keys(keys: Sequence[str]) -> list[str]:
    """The current spelling of a key path."""
    return list(CURRENT.get(tuple(keys), keys))


def former_in_overrides(given: Iterable[Sequence[str]]) -> set[Keys]:
    """The former key paths among those of `--set`. Raises InputError if the current one is given too."""
    paths = {tuple(keys) for keys in given}
    found = paths & CURRENT.keys()
    for former in sorted(found):
        if CURRENT[former] in paths:
            raise _both("--set", former)
    return found


def rename_in_table(data: dict[str, Any], where: str) -> set[Keys]:
    """Rename the former keys of a scenario's table in place; returns them.

    Raises InputError if the table has both spellings of a key.
    """
    found: set[Keys] = set()
    for former, (section, name) in CURRENT.items():
        table = data.get(section)
        if isinstance(table, dict) and former[-1] in table:
            if name in table:
                raise _both(where, former)
            table[name] = table.pop(former[-1])
            found.add(former)
    return found


def warn(where: str, found: Iterable[Keys]) -> None:
    """Print one line on stderr that names the new spellings. The same line is printed once in a process."""
    renamed = ", ".join(f"{_dotted(former)} is now {_dotted(CURRENT[former])}" for former in sorted(found))
    if renamed:
        _warn_once(f"unweft: warning: {where}: {renamed}; the former spelling works for one release")


@cache
def _warn_once(line: str) -> None:
    print(line, file=sys.stderr)


def _both(where: str, former: Keys) -> InputError:
    current = _dotted(CURRENT[former])
    return InputError(f"{where}: {current}: is given a second time as {_dotted(former)}; allowed: {current}")


def _dotted(keys: Sequence[str]) -> str:
    return ".".join(keys)
