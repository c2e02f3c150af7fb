"""Plain ZeroMQ sockets in an asyncio loop. (zmq.asyncio makes a future and a poll for each message.)

A socket's descriptor signals *changes*, not states, and any call on the socket may consume the signal. So a
socket is always read until it is empty before its descriptor is awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import zmq

Socket = zmq.Socket[bytes]
BATCH = 64  # messages between two turns of the loop, so that one socket cannot block it


class Watch:
    """Calls `handle` with each message of a socket. The watch owns the socket from now on."""

    def __init__(self, socket: Socket, handle: Callable[[list[bytes]], None]) -> None:
        self._socket, self._handle = socket, handle
        self._loop = asyncio.get_running_loop()
        self._fd = _descriptor(socket)
        self._loop.add_reader(self._fd, self._drain)
        self._loop.call_soon(self._drain)  # messages that arrived before the descriptor was watched

    def close(self) -> None:
        if not self._socket.closed:
            self._loop.remove_reader(self._fd)
            self._socket.close(linger=0)

    def _drain(self) -> None:
        for _ in range(BATCH):
            if self._socket.closed:  # `handle` may have closed it
                return
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._handle(frames)
        self._loop.call_soon(self._drain)


class Waiter:
    """Suspends one task until one of several sockets has news, or until `wake`.

    The loop watches the descriptors from one wait to the next, since each registration costs time. It stops
    when a descriptor has news while no task waits: the descriptor would stay ready.
    """

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None
        self._sockets: tuple[Socket, ...] = ()
        self._fds: list[int] = []

    def wake(self) -> None:
        """Wake the task, and watch no descriptor until it waits again.

        Also call this before a socket closes: another file may soon have its descriptor number.
        """
        self._unwatch()
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, sockets: Sequence[Socket]) -> None:
        """Raises RuntimeError if another task already waits: only one of the two would wake."""
        if self._future is not None:
            raise RuntimeError("another task already waits here")
        if tuple(sockets) != self._sockets:
            self._unwatch()
            self._watch(sockets)
        self._future = asyncio.get_running_loop().create_future()
        try:
            await self._future
        finally:
            self._future = None

    def _watch(self, sockets: Sequence[Socket]) -> None:
        self._fds = [_descriptor(socket) for socket in sockets]
        self._sockets = tuple(sockets)
        for fd in self._fds:
            asyncio.get_running_loop().add_reader(fd, self._on_news)

    def _unwatch(self) -> None:
        for fd in self._fds:
            asyncio.get_running_loop().remove_reader(fd)
        self._sockets, self._fds = (), []

    def _on_news(self) -> None:
        if self._future is None:
            self._unwatch()
        elif not self._future.done():
            self._future.set_result(None)


def _descriptor(socket: Socket) -> int:
    return int(socket.get(zmq.FD))
