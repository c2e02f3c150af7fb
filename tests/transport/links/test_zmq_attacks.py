"""Links with keys and an attacker on the path: altered or replayed bytes are refused, later messages
arrive.
"""

from __future__ import annotations

import asyncio

import pytest
import zmq

from tests.support.live_links import both, device, next_of, parts, run, until
from tests.support.relay import relay
from transport.links.zmq_dealer import Limits


def test_a_recorded_connection_cannot_be_replayed(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with device("d0", both()) as d0, device("d1", both()) as d1, relay(d0.address) as way:
            d1.connect("d0", way.address)
            d1.send("d0", [b"a secret"])
            assert parts(await next_of(d0)) == [b"a secret"]
            assert b"secret" not in way.taken[0] and b"d1" not in way.taken[0]
            established = d0.connections["established"]
            for _ in range(3):
                await way.replay(d0.address)
            await until(lambda: d0.security_events.total() >= 3)
            d1.send("d0", [b"another"])
            assert parts(await next_of(d0)) == [b"another"]  # and nothing before it
            assert d0.connections["established"] == established
        assert "inbox_protocol" in caplog.text

    run(test())


# libzmq drops a connection on which something does not decrypt at once or, when it loses the error's number
# in telling its monitor, as soon as the heartbeat fails
SOON = Limits(heartbeat_ms=100, heartbeat_timeout_ms=400)


@pytest.mark.parametrize("place", [20, -1], ids=["in the middle", "at the end"])
def test_an_altered_byte_ends_the_connection(place: int) -> None:
    async def test() -> None:
        async with (
            device("d0", both(), limits=SOON) as d0,
            device("d1", both(), limits=SOON) as d1,
            relay(d0.address) as way,
        ):
            d1.connect("d0", way.address)
            d1.send("d0", [b"before"])
            assert parts(await next_of(d0)) == [b"before"]
            hit: list[bytes] = []

            def alter(piece: bytes) -> bytes:
                if hit:
                    return piece
                hit.append(piece)
                changed = bytearray(piece)
                changed[place] ^= 1
                return bytes(changed)

            way.alter = alter
            d1.send("d0", [b"w" * 500, b"x" * 500])
            await until(lambda: d0.security_events["inbox_protocol"] >= 1)
            await until(lambda: d0.connections["established"] >= 2)  # it has come back by itself
            d1.send("d0", [b"after"])
            assert parts(await next_of(d0)) == [b"after"]  # what was altered is lost, never wrong
            assert hit

    run(test())


def test_without_sockets_there_is_no_link_and_no_error() -> None:
    async def test() -> None:
        async with device("d0") as d0, device("d1") as d1:
            d0._outside.set(zmq.MAX_SOCKETS, 8)
            for i in range(10):
                d0.connect(f"x{i}", d1.address)
            assert d0.security_events["bad_address"] > 0
            assert d0.send("x0", [b"heard"]) and not d0.send("x9", [b"not heard"])
            assert parts(await next_of(d1)) == [b"heard"]

    run(test())


def test_malformed_bytes_end_an_admitted_connection() -> None:
    async def test() -> None:
        async with device("d0", both()) as d0, device("d1", both()) as d1, relay(d0.address) as way:
            d1.connect("d0", way.address)
            d1.send("d0", [b"before"])
            await next_of(d0)
            way.alter = lambda piece: b"\x00\x05hello" + piece  # a frame that is not encrypted
            d1.send("d0", [b"behind it"])
            await until(lambda: d0.security_events["inbox_protocol"] >= 1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(d0.recv(), 0.1)

    run(test())
