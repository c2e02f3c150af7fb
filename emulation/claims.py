"""Ids that nobody hands out: each device takes one for itself in a folder that all share.

A file for each id, made only if it is not there (O_EXCL): two devices never get the same. What is in it says
whose it is; a device that is started again with the same token gets the id that it had.
"""

from __future__ import annotations

import os
import socket
from itertools import count
from pathlib import Path

FOLDER = "claims"


def claim(run: Path, prefix: str, token: str) -> str:
    """The id that a token has in a run's folder; a new one, the lowest free number, if it has none."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if _words(path)[:1] == [token]:
            path.write_text(_line(token), encoding="utf-8")  # the host may be another by now
            return path.name
    names = (f"{prefix}{number}" for number in count())
    return next(name for name in names if _take(folder / name, token))


def owners(run: Path) -> dict[str, str]:
    """By id: the host, of a container its id, that claimed it last."""
    folder = run / FOLDER
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: words[1] for path in paths if len(words := _words(path)) == 2}


def _take(path: Path, token: str) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(_line(token))
    return True


def _line(token: str) -> str:
    return f"{token} {socket.gethostname()}\n"


def _words(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split()
