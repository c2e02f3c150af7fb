"""The receiver's queue: messages in order of arrival, but probes before data if the device is late."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from peers.runtime.delivery import Delivery
from peers.runtime.event_queue import EventQueue
from peers.runtime.receiver import Receiver
from peers.runtime.reception_accounts import ReceptionAccounts
from transport.links.interface import Received
from transport.shaping.accounting import Accounts
from transport.wire.messages import Bye, Envelope, Gossip, Hello, Manifest, Message, Ping, Update, Updates
from transport.wire.packing import pack

NOW = 1_000_000_000
DIGEST = bytes(16)


class FilledLinks:
    """Links on which all messages have been received already."""

    def __init__(self, messages: list[tuple[Envelope, Message]]) -> None:
        self._left: Iterator[tuple[Envelope, Message]] = iter(messages)

    async def recv(self) -> Received:
        following = next(self._left, None)
        if following is None:
            await asyncio.get_running_loop().create_future()
            raise AssertionError
        envelope, message = following
        payload = bytes(16) if isinstance(message, Updates) else None
        return Received("d1", tuple(pack(envelope, message, payload)), 10)


def updates() -> Updates:
    return Updates([Update("d1", 0, "early", 1, 1, "train", "fp16", 4, 2, 0, 16, None)])


def order_of_arrivals(messages: list[tuple[int, Message]], virtual: bool) -> list[str]:
    """The kinds of messages in the order in which a device handles them that reads its queue at NOW."""
    taken: list[str] = []

    def on_arrival(envelope: Envelope, message: Message, received: Received) -> bool:
        taken.append(type(message).__name__)
        return False

    queue = EventQueue()
    sent = [
        (Envelope("d1", 0, seq=number, arrive_ns=at), message)
        for number, (at, message) in enumerate(messages)
    ]
    links: Any = FilledLinks(sent)
    assembly: Any = None
    protocol: Any = SimpleNamespace(peers={"d1"})
    clock: Any = SimpleNamespace(now=lambda: NOW, poke=lambda: None)
    virtual_clock: Any = SimpleNamespace(on_received=lambda src, seq: None) if virtual else None
    accounts = ReceptionAccounts(protocol, Accounts(), Counter())
    delivery = Delivery(
        protocol, assembly, accounts, on_arrival=on_arrival, on_copy=lambda peer, part, matrix: None
    )
    receiver = Receiver(links, accounts, delivery, queue, clock, virtual_clock, authenticated=True)

    async def receive() -> None:
        task = asyncio.create_task(receiver.run())
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(receive())
    while queue.next_ns() is not None:
        queue.pop().event(NOW)
    return taken


LATE: list[tuple[int, Message]] = [
    (NOW - 50, updates()),
    (NOW - 40, Manifest(1, "train", DIGEST, [])),
    (NOW - 30, Ping(1, DIGEST)),
    (NOW - 20, Bye("retire")),
]


def test_a_late_device_answers_probes_before_it_handles_data() -> None:
    assert order_of_arrivals(LATE, virtual=False) == ["Ping", "Updates", "Manifest", "Bye"]


def test_a_late_device_keeps_the_order_of_a_hello_and_gossip() -> None:
    late: list[tuple[int, Message]] = [
        (NOW - 50, Hello("tcp://127.0.0.1:1", {}, True, [], 0)),
        (NOW - 40, Gossip([], False, 0)),
        (NOW - 30, Ping(1, DIGEST)),
    ]
    assert order_of_arrivals(late, virtual=False) == ["Ping", "Hello", "Gossip"]


def test_messages_in_flight_keep_their_order() -> None:
    ahead = [(at + 100, message) for at, message in LATE]
    assert order_of_arrivals(ahead, virtual=False) == ["Updates", "Manifest", "Ping", "Bye"]


@pytest.mark.parametrize("late", [True, False])
def test_in_virtual_time_the_order_does_not_depend_on_lateness(late: bool) -> None:
    messages = LATE if late else [(at + 100, message) for at, message in LATE]
    assert order_of_arrivals(messages, virtual=True) == ["Updates", "Manifest", "Ping", "Bye"]
