"""Waiting for ZeroMQ sockets: a descriptor stays registered between waits, and never keeps the loop busy."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import zmq

from tests.support.live_links import run
from transport.links.zmq_watch import Socket, Waiter


@contextmanager
def pair() -> Iterator[tuple[Socket, Socket]]:
    """Two connected sockets."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as here, context.socket(zmq.PAIR) as there:
        here.bind("inproc://here")
        there.connect("inproc://here")
        yield here, there


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the registrations of descriptors in the running loop."""
    loop, calls = asyncio.get_running_loop(), Counter[str]()

    def count(name: str) -> None:
        inner: Callable[..., object] = getattr(loop, name)

        def call(*args: object) -> object:
            calls[name] += 1
            return inner(*args)

        monkeypatch.setattr(loop, name, call)

    count("add_reader")
    count("remove_reader")
    return calls


def read(socket: Socket) -> int:
    """Read until the socket is empty. Returns the number of messages."""
    number = 0
    while int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
        socket.recv(zmq.DONTWAIT)
        number += 1
    return number


def test_many_waits_need_one_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        calls, waiter = counted(monkeypatch), Waiter()
        with pair() as (here, there):
            for _ in range(5):
                asyncio.get_running_loop().call_soon(there.send, b"news")
                while not read(here):
                    await waiter.wait([here])
            assert dict(calls) == {"add_reader": 1}
            waiter.wake()  # before the socket closes
            assert dict(calls) == {"add_reader": 1, "remove_reader": 1}

    run(test())


def test_a_descriptor_with_news_for_nobody_is_not_watched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        calls, waiter = counted(monkeypatch), Waiter()
        with pair() as (here, there):
            waiting = asyncio.create_task(waiter.wait([here]))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            there.send(b"news")
            await asyncio.sleep(0.01)
            assert calls["remove_reader"] == 1  # or the loop would turn without a pause
            assert read(here) == 1
            asyncio.get_running_loop().call_soon(there.send, b"more")
            while not read(here):
                await waiter.wait([here])
            waiter.wake()

    run(test())
