"""Links with keys: admission, identities, counted refusals, and rotation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import zmq

from tests.support.live_links import (
    DEADLINE_S,
    NEW,
    OLD,
    both,
    device,
    listed,
    next_of,
    parts,
    run,
    until,
)
from transport.links.interface import Received
from transport.links.zmq_dealer import Limits
from transport.links.zmq_links import ZmqLinks
from transport.security.keys import NetworkKeys
from transport.wire.packing import wire_bytes

# -- keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "at_inbox", "at_link"),
    [(both(NEW), "inbox_protocol", "link_no_detail"), (None, "inbox_protocol", "link_protocol")],
    ids=["wrong key", "no key"],
)
def test_without_the_key_nothing_arrives_and_the_attempt_is_counted(
    mine: NetworkKeys | None, at_inbox: str, at_link: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with device("d1", both()) as d1, device("d0", mine, limits=Limits(linger_ms=10)) as d0:
            d0.connect("d1", d1.address)
            assert d0.send("d1", [b"secret"])  # send cannot know
            await until(lambda: d1.security_events[at_inbox] > 0 and d0.security_events[at_link] > 0)
            async with device("d2", both()) as d2:
                d2.connect("d1", d1.address)
                d2.send("d1", [b"good"])
                assert (await next_of(d1)).source == "d2"  # and nothing before it
        assert at_inbox in caplog.text and at_link in caplog.text
        if mine is not None:
            assert d0.unsent_bytes["d1"] == 0 or d0.unsent_bytes["d1"] == wire_bytes([b"secret"], True)

    run(test())


def test_a_plain_inbox_refuses_a_link_with_keys() -> None:
    async def test() -> None:
        async with device("d1") as d1, device("d0", both(), limits=Limits(linger_ms=10)) as d0:
            d0.connect("d1", d1.address)
            d0.send("d1", [b"not in the clear"])
            await until(lambda: sum(d0.security_events.values()) > 0 and sum(d1.security_events.values()) > 0)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(d1.recv(), 0.2)

    run(test())


def test_an_allow_list_identifies_the_sender() -> None:
    async def test() -> None:
        keys = listed("d0", "d1")
        async with device("d0", keys["d0"]) as d0, device("d1", keys["d1"]) as d1:
            d0.connect("d1", d1.address)
            d0.send("d1", [b"hello"])
            received = await next_of(d1)
            assert (received.source, received.user) == ("d0", "d0")

    run(test())


def test_a_key_that_is_not_listed_stays_out_until_it_is() -> None:
    async def test() -> None:
        keys = listed("d0", "d1", "d2")
        allowed = {name: key for name, key in (keys["d1"].allowed or {}).items() if name != "d2"}
        short = NetworkKeys((OLD,), keys["d1"].device, allowed)
        async with device("d1", short) as d1, device("d2", keys["d2"]) as d2:
            d2.connect("d1", d1.address)
            assert d2.send("d1", [b"let me in"])
            await until(lambda: d1.security_events["inbox_auth"] > 0 and d2.security_events["link_auth"] > 0)
            await d1.use_keys(keys["d1"])
            assert parts(await next_of(d1)) == [b"let me in"]

    run(test())


def test_a_listed_device_cannot_speak_as_another() -> None:
    async def test() -> None:
        keys = listed("d0", "d1", "d2")
        dropped: list[tuple[str, str, int]] = []
        listener = device("d1", keys["d1"], on_drop=lambda *seen: dropped.append(seen))
        async with listener as d1, device("d0", keys["d2"]) as liar, device("d0", keys["d0"]) as d0:
            liar.connect("d1", d1.address)
            liar.send("d1", [b"I am d0"])
            waiting = asyncio.create_task(d1.recv())
            await until(lambda: bool(dropped))
            assert dropped == [("d0", "unbound", wire_bytes([b"I am d0"], True))]
            d0.connect("d1", d1.address)
            d0.send("d1", [b"really"])
            assert parts(await asyncio.wait_for(waiting, DEADLINE_S)) == [b"really"]

    run(test())


def test_messages_of_a_device_removed_from_the_list_are_dropped() -> None:
    async def test() -> None:
        keys = listed("d0", "d1")
        async with device("d0", keys["d0"]) as d0, device("d1", keys["d1"]) as d1:
            d0.connect("d1", d1.address)
            d0.send("d1", [b"1"])
            await next_of(d1)
            await d1.use_keys(NetworkKeys((OLD,), keys["d1"].device, {}))
            d0.send("d1", [b"2"])
            waiting = asyncio.create_task(d1.recv())
            await until(lambda: d1.security_events["unbound"] == 1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    run(test())


def test_no_server_key_without_the_network_key() -> None:
    async def test() -> None:
        async with device("d1", both()) as d1:
            context = zmq.Context()
            raw = context.socket(zmq.DEALER)
            raw.linger = 0
            raw.curve_serverkey = both().server().public  # leaked, but it is the client pair that admits
            raw.curve_publickey, raw.curve_secretkey = zmq.curve_keypair()
            raw.connect(d1.address)
            raw.send(b"x")
            await until(lambda: d1.security_events["inbox_auth"] > 0)
            raw.close()
            context.term()

    run(test())


# -- rotation ------------------------------------------------------------------------------------------

Step = Callable[[NetworkKeys], NetworkKeys]
STEPS: list[Step] = [lambda k: k.installed(NEW), lambda k: k.used(NEW), lambda k: k.removed(OLD)]


def test_a_rotation_step_by_step_keeps_both_ways_open() -> None:
    async def test() -> None:
        async with (
            device("d0", both()) as d0,
            device("d1", both()) as d1,
            receiving(d0) as at0,
            receiving(d1) as at1,
        ):
            keys = {d0: both(), d1: both()}
            addresses = (d0.address, d1.address)
            d0.connect("d1", d1.address)
            d1.connect("d0", d0.address)

            async def heard(tag: str) -> None:
                assert d0.send("d1", [tag.encode()]) and d1.send("d0", [tag.encode()])
                for queue in (at0, at1):
                    assert parts(await asyncio.wait_for(queue.get(), DEADLINE_S)) == [tag.encode()]

            await heard("before")
            for i, step in enumerate(STEPS):
                for links in (d0, d1):  # one after the other: in between the two differ
                    keys[links] = step(keys[links])
                    await links.use_keys(keys[links])
                    await settled(d0, d1)
                    await heard(f"step {i}")
            assert (d0.address, d1.address) == addresses
            await only_the_new_key_connects(d0, at0)

    run(test())


async def only_the_new_key_connects(d0: ZmqLinks, at0: asyncio.Queue[Received]) -> None:
    async with device("d2", both(OLD), limits=Limits(linger_ms=10)) as late, device("d3", both(NEW)) as new:
        late.connect("d0", d0.address)
        late.send("d0", [b"with the old key"])
        await until(lambda: late.security_events["link_no_detail"] > 0)
        new.connect("d0", d0.address)
        new.send("d0", [b"with the new key"])
        assert (await asyncio.wait_for(at0.get(), DEADLINE_S)).source == "d3"


async def settled(*links: ZmqLinks) -> None:
    """Until all links have noticed a broken connection and shaken hands again."""
    await asyncio.sleep(0.1)
    await until(lambda: all(dealer.up for end in links for dealer in end._dealers.values()))


@asynccontextmanager
async def receiving(links: ZmqLinks) -> AsyncIterator[asyncio.Queue[Received]]:
    """A receiver that runs all the time, as in a device."""
    found: asyncio.Queue[Received] = asyncio.Queue()

    async def receive() -> None:
        while True:
            found.put_nowait(await links.recv())

    task = asyncio.create_task(receive())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_received_messages_survive_a_rotation() -> None:
    async def test() -> None:
        two = both().installed(NEW)
        async with device("d0", two) as d0, device("d1", two) as d1:
            d0.connect("d1", d1.address)
            for i in range(100):
                d0.send("d1", [str(i).encode()])
            assert parts(await next_of(d1)) == [b"0"]
            await asyncio.sleep(0.2)  # all are in the inbox; nothing tells a reader that
            await d1.use_keys(two.used(NEW))
            assert [int(parts(await next_of(d1))[0]) for _ in range(99)] == list(range(1, 100))

    run(test())


def test_links_without_keys_cannot_get_keys() -> None:
    async def test() -> None:
        async with device("d0") as d0:
            with pytest.raises(ValueError, match="without keys"):
                await d0.use_keys(both())

    run(test())
