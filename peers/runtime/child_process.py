"""A child process that ends when its launcher ends, even if the launcher is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from peers.errors import describe
from peers.runtime import standard_streams

_PR_SET_PDEATHSIG = 1


def guard(lifeline: Connection | None) -> None:
    """Give this process its own process group, and end it when the launcher ends.

    On Linux the kernel kills it when its parent dies, also while it is stopped. On every system a thread ends
    it when the launcher's end of `lifeline` closes.
    """
    os.setpgid(0, 0)  # Ctrl-C in the terminal must reach only the launcher
    for number in (signal.SIGTERM, signal.SIGHUP):  # a forkserver ignores them
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if lifeline is not None:
        threading.Thread(target=_watch, args=(lifeline,), name="lifeline", daemon=True).start()


def _watch(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def redirect_output(log: Path) -> None:
    """Send this process's standard output and error to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(fd, stream)
    os.close(fd)
    standard_streams.protect()


def failure_file(log: Path) -> Path:
    """The file beside a log with the exception that ended the process."""
    return log.with_suffix(".failure.txt")


@contextmanager
def failure_recorded(log: Path) -> Iterator[None]:
    """Write the exception that ends the work of this process to its `failure_file`."""
    failure_file(log).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        with suppress(OSError):  # the disk may be full
            failure_file(log).write_text(describe(error) + "\n", encoding="utf-8")
        raise


def end_process(code: int) -> NoReturn:
    """End this process. A library's exit handlers could keep it alive."""
    standard_streams.flush(sys.stdout, sys.stderr)
    os._exit(code)
