"""Files of records, to which a process appends lines of JSON. The process holds a lock on them.

The system gives a lock up when the process ends, however it ends. So a launcher that goes on with a run can
wait until no process of the run is left.
"""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path
from typing import TextIO


def open_records(path: Path) -> TextIO:
    """Open a file to append lines, and hold it until it is closed. Several processes may hold it together.

    If an earlier process was killed within a line, that line is ended first. A file system without locks is
    no error.
    """
    end_line(path)
    file = path.open("a", encoding="utf-8")
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return file


def end_line(path: Path) -> None:
    """End the last line of a file, if there is one without an end."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.write(b"\n")


def is_held(path: Path) -> bool:
    """Whether another process holds a file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such file, or there are no locks
        return False
    return False
