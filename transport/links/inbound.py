"""A bound on the connections to an inbox, so that silent ones cannot take all descriptors of the process.

libzmq accepts every connection and closes one without a handshake after `handshake_ms`. It cannot limit their
number, but its monitor names the descriptor of each one. Connections above a share of RLIMIT_NOFILE are shut
down at once; libzmq then closes them.
"""

from __future__ import annotations

import resource
import socket
from contextlib import suppress

SHARE = 4  # connections to the inbox take at most this part of the descriptors
LEAST = 8


class InboundConnections:
    """The open connections to one inbox. `most`: how many there may be; None: by RLIMIT_NOFILE."""

    def __init__(self, most: int | None = None) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        unlimited = limit == resource.RLIM_INFINITY
        self._most = most or (1 << 20 if unlimited else max(LEAST, limit // SHARE))
        self._open: set[int] = set()  # descriptors

    def accept(self, descriptor: int) -> bool:
        """A connection was accepted. Returns False if it is one too many, and is shut down."""
        if len(self._open) < self._most:
            self._open.add(descriptor)
            return True
        with suppress(OSError):  # closed already
            _shut_down(descriptor)
        return False

    def end(self, descriptor: int) -> None:
        """A connection ended."""
        self._open.discard(descriptor)


def _shut_down(descriptor: int) -> None:
    """Shut a connection down; libzmq closes it. It takes no further descriptor, since there may be none."""
    connection = socket.socket(fileno=descriptor)
    try:
        connection.shutdown(socket.SHUT_RDWR)
    finally:
        connection.detach()
