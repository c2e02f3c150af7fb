"""Links without sockets."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.live_links import both, next_of, parts, run
from transport.links.memory_links import MemoryLinks
from transport.wire.packing import wire_bytes


async def pair() -> tuple[MemoryLinks, MemoryLinks]:
    network: dict[str, MemoryLinks] = {}
    ends = MemoryLinks("d0", "a", network, both()), MemoryLinks("d1", "b", network, both())
    for end in ends:
        await end.start()
    ends[0].connect("peer", "b")
    return ends


def test_messages_arrive_in_order_with_the_size_of_the_wire() -> None:
    async def talk() -> None:
        d0, d1 = await pair()
        waiting = asyncio.ensure_future(next_of(d1))
        await asyncio.sleep(0)
        assert d0.send("peer", [b"head", memoryview(b"data")]) and d0.send("peer", [b"second"])
        first = await waiting
        assert (first.source, parts(first)) == ("d0", [b"head", b"data"])
        assert first.wire_bytes == wire_bytes([b"head", b"data"], curve=True)
        assert parts(await next_of(d1)) == [b"second"]

    run(talk())


def test_a_receiver_that_overwrites_a_payload_leaves_that_of_the_sender() -> None:
    async def talk() -> None:
        d0, d1 = await pair()
        kept = bytearray(b"data")
        d0.send("peer", [memoryview(kept)])
        received = memoryview((await next_of(d1)).frames[0])
        received[:] = bytes(4)
        assert kept == b"data"

    run(talk())


def test_a_message_to_a_closed_end_is_lost_and_one_without_a_link_is_not_sent() -> None:
    async def talk() -> None:
        d0, d1 = await pair()
        assert not d0.send("nobody", [b"x"])
        await d1.close()
        assert d0.send("peer", [b"x"])
        with pytest.raises(ConnectionError):
            await d1.recv()
        d0.disconnect("peer")
        assert not d0.send("peer", [b"x"])

    run(talk())
