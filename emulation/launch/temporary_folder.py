"""The temporary folder of multiprocessing, which holds the socket files of the forkserver and of devices.

Only this user may enter it (mode 0700).

The launcher removes it at its end. If the launcher is killed, the forkserver removes it, which ends after all
of its children.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import util

VARIABLE = "UNWEFT_FORKSERVER_FOLDER"  # environment variable of the forkserver: the path of the folder
LONGEST = 60  # in bytes; the path of a socket file has 107, and multiprocessing adds about 30


def path() -> str:
    """The path of the folder, which is made at the first call. It is in /tmp if TMPDIR is too long."""
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST:
        tempfile.tempdir = "/tmp"
    try:
        return util.get_temp_dir()
    finally:
        tempfile.tempdir = before


@contextmanager
def named() -> Iterator[None]:
    """Name the folder to the forkserver that starts meanwhile, but to no later process."""
    os.environ[VARIABLE] = path()
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def remove_at_exit() -> None:
    """The forkserver removes the folder when it ends. Its children end without exit handlers."""
    folder = os.environ.pop(VARIABLE, None)
    if folder:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
