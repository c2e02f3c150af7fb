"""Names of hosts are resolved beside the event loop, within bounds, and each once."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tests.support.live_links import device, next_of, parts, run, until
from transport.links.resolver import MOST_WAITING, Resolver, TooManyNames


def test_names_that_nobody_answers_for_do_not_hold_up_the_loop_or_other_links() -> None:
    """As many as may wait, and one more. A link to a numeric address works meanwhile."""
    release = threading.Event()

    async def test() -> None:
        async with device("d0") as one, device("d1") as other:
            one._resolver = Resolver(lambda host, ipv6: hang(release))
            began = time.monotonic()
            for n in range(MOST_WAITING + 5):
                one.connect(f"x{n}", f"tcp://no-such-name-{n}.invalid:7000")
            assert time.monotonic() - began < 2.0
            assert one.security_events["link_no_name"] == 5  # each tries again with its next message
            one.connect("d1", other.address)
            assert one.send("d1", [b"hello"])
            assert parts(await next_of(other)) == [b"hello"]
            release.set()
            await until(lambda: one.security_events["link_no_name"] == MOST_WAITING + 5)

    run(test())


def test_a_name_is_looked_up_once_and_a_failure_is_remembered() -> None:
    calls: list[str] = []

    def lookup(host: str, ipv6: bool) -> str | None:
        calls.append(host)
        return "127.0.0.1" if host == "known" else None

    async def test() -> None:
        resolver, found = Resolver(lookup), list[str | None]()
        for _ in range(3):
            resolver.resolve("tcp://known:7", found.append)
            resolver.resolve("tcp://unknown:7", found.append)
        await until(lambda: len(found) == 6)
        resolver.resolve("tcp://known:8", found.append)
        resolver.resolve("tcp://10.0.0.1:9", found.append)
        assert found[-2:] == ["tcp://127.0.0.1:8", "tcp://10.0.0.1:9"]
        assert sorted(calls) == ["known", "unknown"] and found.count(None) == 3
        resolver.close()

    asyncio.run(test())


def test_the_number_of_waiting_lookups_is_bounded() -> None:
    async def test() -> None:
        release = threading.Event()
        resolver = Resolver(lambda host, ipv6: hang(release))
        for n in range(MOST_WAITING):
            resolver.resolve(f"tcp://n{n}:1", lambda endpoint: None)
        with pytest.raises(TooManyNames):
            resolver.resolve("tcp://more:1", lambda endpoint: None)
        release.set()
        resolver.close()

    asyncio.run(test())


def hang(release: threading.Event) -> None:
    """A lookup that takes until it is released."""
    release.wait(20)
