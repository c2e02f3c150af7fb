"""The bound on connections to an inbox: what is above it is shut down, and takes no descriptor."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from transport.links.inbound import InboundConnections


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir() if path.exists()}


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Within it no further descriptor can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        with pytest.raises(OSError):
            os.dup(0)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_connection_above_the_bound_is_shut_down_and_stays_with_its_owner() -> None:
    connections = InboundConnections(most=1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert connections.accept(-5)
        before = descriptors()
        with no_more_descriptors():
            assert not connections.accept(ours.fileno())
        assert theirs.recv(1) == b"" and ours.fileno() >= 0
        assert descriptors() == before
    connections.end(-5)
    assert connections.accept(7)


def test_a_descriptor_that_is_no_socket_leaks_nothing(tmp_path: Path) -> None:
    """libzmq may have closed the connection, and a file may have its descriptor now."""
    connections = InboundConnections(most=1)
    connections.accept(-5)
    before = descriptors()
    with (tmp_path / "file").open("w") as file:
        assert not connections.accept(file.fileno())
        file.write("still open")
        closed = file.fileno()
    assert not connections.accept(closed)
    assert descriptors() == before
