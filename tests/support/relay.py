"""A relay between two devices: it forwards bytes, records those in one direction, and may alter them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress


class Relay:
    """Forwards TCP connections to `target`. `alter`: changes each piece on its way there."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.address = ""
        self.taken: list[bytearray] = []  # the recorded bytes of each connection
        self.alter: Callable[[bytes], bytes] = lambda piece: piece
        self._tasks: set[asyncio.Task[None]] = set()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept = bytearray()
        self.taken.append(kept)

        def towards(piece: bytes) -> bytes:
            kept.extend(piece)
            return self.alter(piece)

        async with _closing(writer):
            onward_reader, onward = await asyncio.open_connection(*_host_port(self.target))
            async with _closing(onward):
                back = _copy(onward_reader, writer, lambda piece: piece)
                await asyncio.gather(_copy(reader, onward, towards), back)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass_on(reader, writer))
        self._tasks.add(task)

    async def replay(self, address: str) -> None:
        """Send the recorded bytes of each connection on new connections."""
        for kept in list(self.taken):
            reader, writer = await asyncio.open_connection(*_host_port(address))
            async with _closing(writer):
                with suppress(OSError):
                    writer.write(kept)
                    writer.write_eof()
                    await reader.read()  # until the peer closes


@asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@asynccontextmanager
async def relay(target: str) -> AsyncIterator[Relay]:
    found = Relay(target)
    server = await asyncio.start_server(found._accept, "127.0.0.1", 0)
    found.address = "tcp://{}:{}".format(*server.sockets[0].getsockname()[:2])
    try:
        yield found
    finally:
        server.close()
        for task in found._tasks:
            task.cancel()
        await asyncio.gather(*found._tasks, return_exceptions=True)


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, through: Callable[[bytes], bytes]
) -> None:
    with suppress(ConnectionError):
        while piece := await reader.read(1 << 16):
            writer.write(through(piece))
            await writer.drain()
    with suppress(OSError):
        writer.write_eof()


def _host_port(address: str) -> tuple[str, int]:
    host, port = address.removeprefix("tcp://").split(":")
    return host, int(port)
