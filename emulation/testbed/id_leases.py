"""Ids of devices without a coordinator: each device claims an id in a folder that all devices share.

Each id has a file. A device creates it (O_EXCL) and locks it while it lives, so that no two devices have the
same id. The file holds the device's token and host. A device that starts again with the same token gets its
former id.
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
    """An id that this process holds until it ends or calls `release`."""

    id: str
    descriptor: int

    def release(self) -> None:
        os.close(self.descriptor)


def claim(run: Path, prefix: str, token: str) -> Claim:
    """Claim the id that the token had in a run's folder, or else the lowest number that was never used."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for path in _paths(run):
        if _words(path)[:1] == [token] and (own := _open_locked(path, os.O_RDWR)) is not None:
            return _write_owner(path, own, token)
    for number in count():
        path = folder / f"{prefix}{number}"
        own = _open_locked(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        if own is not None:
            return _write_owner(path, own, token)
    raise AssertionError("numbers have no end")


def claim_id(run: Path, name: str, token: str) -> Claim:
    """Claim a given id. Raises InputError if a live device holds it."""
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    own = _open_locked(run / FOLDER / name, os.O_RDWR | os.O_CREAT)
    if own is None:
        raise InputError(f"--id: {name} lives already; allowed: another id")
    return _write_owner(run / FOLDER / name, own, token)


def owners(run: Path) -> dict[str, str]:
    """The host that claimed each id last. The host of a container is the container's short id."""
    return {path.name: words[1] for path in _paths(run) if len(words := _words(path)) == 2}


def any_claimed(run: Path) -> bool:
    """Whether a device ever claimed an id."""
    return bool(_paths(run))


def any_alive(run: Path) -> bool:
    """Whether a device that claimed an id is alive."""
    return any(_is_held(path) for path in _paths(run))


def _paths(run: Path) -> list[Path]:
    folder = run / FOLDER
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _open_locked(path: Path, flags: int) -> int | None:
    """Open and lock a file; None if it exists (with O_EXCL) or if another process has locked it."""
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


def _write_owner(path: Path, descriptor: int, token: str) -> Claim:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{token} {socket.gethostname()}\n".encode())
    return Claim(path.name, descriptor)


def _is_held(path: Path) -> bool:
    descriptor = _open_locked(path, os.O_RDONLY)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def _words(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split()


if __name__ == "__main__":  # the launcher runs this in a container to find each device's container
    print(json.dumps(owners(Path(os.environ["UNWEFT_OUT"]))))
