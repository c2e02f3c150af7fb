"""Links over real sockets for tests. Every wait has a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from transport.links.interface import Links, Received
from transport.links.zmq_dealer import Limits
from transport.links.zmq_links import ZmqLinks
from transport.security.keys import CurvePair, NetworkKeys

LISTEN = "tcp://127.0.0.1:0"
DEADLINE_S = 10.0
OLD, NEW = b"\1" * 32, b"\2" * 32
QUIET = Limits(heartbeat_ms=60_000)  # no heartbeats during a test


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test with a deadline."""

    async def limited() -> None:
        async with asyncio.timeout(4 * DEADLINE_S):
            await test

    asyncio.run(limited())


@asynccontextmanager
async def device(name: str, keys: NetworkKeys | None = None, **more: Any) -> AsyncIterator[ZmqLinks]:
    on_drop = more.pop("on_drop", None)
    links = ZmqLinks(name, more.pop("listen", LISTEN), keys, **more)
    try:
        await links.start(on_drop)
        yield links
    finally:
        await links.close()


async def next_of(links: Links) -> Received:
    return await asyncio.wait_for(links.recv(), DEADLINE_S)


async def until(true: Callable[[], bool]) -> None:
    """Wait until a condition that libzmq's threads change is true. Fails at the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def parts(received: Received) -> list[bytes]:
    """The frames as bytes."""
    return [bytes(frame) for frame in received.frames]


def both(secret: bytes = OLD) -> NetworkKeys:
    """The network keys of two devices without an allow-list."""
    return NetworkKeys((secret,))


def listed(*names: str) -> dict[str, NetworkKeys]:
    """The network keys of devices with an allow-list."""
    pairs = {name: CurvePair.generate() for name in names}
    allowed = {name: pair.public for name, pair in pairs.items()}
    return {name: NetworkKeys((OLD,), pair, allowed) for name, pair in pairs.items()}
