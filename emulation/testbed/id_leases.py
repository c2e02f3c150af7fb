"""Ids that nobody hands out: each device takes one for itself in a folder that all share.

A file for each id, made only if it is not there (O_EXCL) and locked while its device lives: two devices never
have the same. What is in it says whose it is; a device that is started again with the same token gets the id
that it had.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from peers.errors import InputError

FOLDER = "claims"


@dataclass(frozen=True, slots=True)
class Claim:
    """An id that is taken as long as the process lives or `release` is called."""

    id: str
    descriptor: int

    def release(self) -> None:
        os.close(self.descriptor)


def claim(run: Path, prefix: str, token: str) -> Claim:
    """The id that a token has in a run's folder; the lowest number that nobody had yet, if it has none."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for path in _paths(run):
        if _words(path)[:1] == [token] and (own := _locked(path, os.O_RDWR)) is not None:
            return _signed(path, own, token)
    for number in count():
        path = folder / f"{prefix}{number}"
        own = _locked(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        if own is not None:
            return _signed(path, own, token)
    raise AssertionError("numbers have no end")


def claim_id(run: Path, name: str, token: str) -> Claim:
    """A certain id. Raises InputError if a device that lives has it."""
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    own = _locked(run / FOLDER / name, os.O_RDWR | os.O_CREAT)
    if own is None:
        raise InputError(f"--id: {name} lives already; allowed: another id")
    return _signed(run / FOLDER / name, own, token)


def owners(run: Path) -> dict[str, str]:
    """By id: the host, of a container its id, that claimed it last."""
    return {path.name: words[1] for path in _paths(run) if len(words := _words(path)) == 2}


def any_claimed(run: Path) -> bool:
    """Whether there ever was a device."""
    return bool(_paths(run))


def any_alive(run: Path) -> bool:
    """Whether the device of some claim lives."""
    return any(_is_held(path) for path in _paths(run))


def _paths(run: Path) -> list[Path]:
    folder = run / FOLDER
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _locked(path: Path, flags: int) -> int | None:
    """The file, opened and locked; None if it is there already (O_EXCL) or locked by another."""
    try:
        descriptor = os.open(path, flags, 0o644)
    except FileExistsError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _signed(path: Path, descriptor: int, token: str) -> Claim:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{token} {socket.gethostname()}\n".encode())
    return Claim(path.name, descriptor)


def _is_held(path: Path) -> bool:
    descriptor = _locked(path, os.O_RDONLY)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def _words(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split()


if __name__ == "__main__":  # in a container, for those outside: which device is in which
    print(json.dumps(owners(Path(os.environ["UNWEFT_OUT"]))))
