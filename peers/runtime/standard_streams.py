"""Standard output and error of a process. Output that cannot be written is dropped: it ends no process.

A reader may close its pipe, a disk may be full, a terminal may be gone, or may know only ASCII.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _DroppingFile(io.RawIOBase):
    """A descriptor to which everything can be written. Bytes that it does not take are dropped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        with memoryview(data) as view:
            try:
                return os.write(self._descriptor, view)
            except OSError:
                return view.nbytes


def protect() -> None:
    """Make `sys.stdout` and `sys.stderr` streams that never fail. Streams that were replaced stay.

    A closed standard descriptor is opened on the null device. Else the next file that the process opens, or a
    socket, would get its number, and with it all output.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number: this one
    if sys.stdout is sys.__stdout__:
        sys.stdout = _protected(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _protected(sys.stderr, 2)


def _protected(stream: TextIO | None, descriptor: int) -> TextIO:
    """`stream` is None if the descriptor was closed when the process started."""
    flush(stream)
    return io.TextIOWrapper(
        io.BufferedWriter(_DroppingFile(descriptor)),
        encoding="utf-8" if stream is None else stream.encoding,
        errors="backslashreplace" if descriptor == 2 else "replace",
        line_buffering=descriptor == 2 or os.isatty(descriptor),
    )


def flush(*streams: TextIO | None) -> None:
    """Flush streams that may be absent, closed or full."""
    for stream in streams:
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            pass
