"""The check of a folder that a command is to write."""

from __future__ import annotations

import os
from pathlib import Path

from peers.errors import InputError


def check_usable(folder: Path) -> None:
    """Raises InputError unless the folder is empty or can be made.

    A folder that holds another run would mix the results of two runs.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"--out: {folder} cannot be made in {existing}; allowed: a new or empty folder")
    if existing == folder.absolute() and any(existing.iterdir()):
        raise InputError(f"--out: {folder} is not empty; allowed: a new or empty folder")
