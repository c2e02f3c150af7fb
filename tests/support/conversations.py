"""Raw TCP conversations with a device, without ZeroMQ."""

from __future__ import annotations

import asyncio


async def conversation(address: str, say: bytes, for_s: float = 0.3) -> bytes:
    """Connect to `address`, send `say`, and return all bytes that arrive within `for_s` seconds."""
    host, port = address.removeprefix("tcp://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    heard = b""
    try:
        writer.write(say)
        async with asyncio.timeout(for_s):
            while more := await reader.read(1 << 16):
                heard += more
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    return heard
