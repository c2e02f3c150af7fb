"""Links between devices in one process and one event loop, without sockets.

A message is in the inbox of its receiver when `send` returns. Nothing is lost, refused or encrypted. Sizes
are those of the wire, with or without CURVE, so that budgets and times are those of real links.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence

from transport.links.interface import BrokenHook, DropHook, Received
from transport.security.keys import NetworkKeys
from transport.wire.messages import Buffer
from transport.wire.packing import wire_bytes


class MemoryLinks:
    """The links of one device (the `Links` protocol). `network`: all links of the run, by address.

    A message to an address whose links are closed is dropped without notice, as a real one is until the
    sender learns of the end. `keys` count in the sizes and name the signers; they encrypt nothing.
    """

    def __init__(
        self, device: str, address: str, network: dict[str, MemoryLinks], keys: NetworkKeys | None = None
    ) -> None:
        self.device, self.address = device, address
        self.security_events: Counter[str] = Counter()
        self.unsent_bytes: Counter[str] = Counter()
        self._network, self._keys = network, keys
        self._addresses: dict[str, str] = {}  # by peer
        self._inbox: deque[Received] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    async def start(self, on_drop: DropHook | None = None) -> None:
        """`on_drop` is never called: every message that arrives is returned."""
        self._network[self.address] = self

    def connect(self, peer: str, address: str, on_broken: BrokenHook | None = None) -> None:
        """`on_broken` is never called."""
        self._addresses[peer] = address

    def disconnect(self, peer: str) -> None:
        self._addresses.pop(peer, None)

    def send(self, peer: str, frames: Sequence[Buffer]) -> bool:
        """The receiver gets memory of its own: it may overwrite what it received."""
        address = self._addresses.get(peer)
        if address is None:
            return False
        receiver = self._network.get(address)
        if receiver is not None:
            own = tuple(f if isinstance(f, bytes) else memoryview(bytearray(f)) for f in frames)
            receiver._deliver(
                Received(self.device, own, wire_bytes(own, self._keys is not None), self._user())
            )
        return True

    async def wait_writable(self, peer: str, timeout_s: float) -> bool:
        return peer in self._addresses

    async def recv(self) -> Received:
        while not self._inbox:
            if self._closed:
                raise ConnectionError("the links are closed")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._inbox.popleft()

    def signer(self, device: str) -> bytes | None:
        return None if self._keys is None else self._keys.signer(device)

    async def flush(self, timeout_s: float) -> bool:
        return True

    async def close(self) -> None:
        self._closed = True
        self._network.pop(self.address, None)
        self._wake()

    def _user(self) -> str:
        return self.device if self._keys is not None and self._keys.allowed is not None else ""

    def _deliver(self, received: Received) -> None:
        self._inbox.append(received)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
