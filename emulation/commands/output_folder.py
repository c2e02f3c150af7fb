"""The folder or file that a command is to write: the check before the work, and the claim of a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from peers.errors import InputError

CLAIM = ".claim"


def check_usable(folder: Path) -> None:
    """Raises InputError unless the folder is empty or can be made.

    A folder that holds another run would mix the results of two runs.
    """
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"--out: {folder} is a link to nothing; allowed: a new or empty folder")
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"--out: {folder} cannot be made in {existing}; allowed: a new or empty folder")
    if existing == folder.absolute():
        _check_empty(folder)


def check_file(option: str, path: Path | None) -> None:
    """Raises InputError unless the file can be written. None: no file is wanted."""
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{option}: there is no folder {folder}")
    if path.is_dir():
        raise InputError(f"{option}: {path} is a folder; allowed: the name of a file")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(f"{option}: {path} cannot be written; allowed: a file that this user can write")


def _check_empty(folder: Path) -> None:
    if any(path.name != CLAIM for path in folder.iterdir()):
        raise InputError(f"--out: {folder} is not empty; allowed: a new or empty folder")


@contextmanager
def claimed(folder: Path, new: bool = True, option: str = "--out") -> Iterator[None]:
    """Make the folder, and hold it: no other command can claim it until this one ends, or is killed.

    `new`: the folder must be empty. `option`: the option that names the folder. Raises InputError.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(folder, option)
    try:
        if new:
            _check_empty(folder)
        yield
    finally:
        with suppress(OSError):
            (folder / CLAIM).unlink()
        os.close(descriptor)
        if made:
            with suppress(OSError):
                folder.rmdir()  # only if nothing was written


def _lock(folder: Path, option: str) -> int:
    """A locked descriptor of the file CLAIM. The lock ends with this process, and no child inherits it."""
    while True:
        descriptor = os.open(folder / CLAIM, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), (folder / CLAIM).stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            allowed = "a new or empty folder" if option == "--out" else "a run that no command writes"
            raise InputError(
                f"{option}: {folder} is being written by another command; allowed: {allowed}"
            ) from None
        except FileNotFoundError:
            pass  # its last holder has just removed it: try again
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
