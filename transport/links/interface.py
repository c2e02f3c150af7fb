"""The interface of links: one device's end of all its connections, over any transport."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from transport.wire.messages import Buffer

DropHook = Callable[[str, str, int], None]  # claimed source, reason, wire bytes
BrokenHook = Callable[[str], None]  # the peer whose connection was lost


@dataclass(slots=True)  # not frozen, because construction is faster
class Received:
    """A message as it arrived. `source`: the id that the connection claims; the envelope must agree.

    `wire_bytes`: its bytes on the wire, with framing and encryption. `user`: the device id that the
    connection's key proves; empty without an allow-list.
    """

    source: str
    frames: tuple[Buffer, ...]
    wire_bytes: int
    user: str = ""


class Links(Protocol):
    """Connections to neighbours. Sending never blocks, and never raises for a peer that is gone.

    Messages of one link arrive in order and at most once. For use from one event loop, with one receiver.
    """

    security_events: Counter[str]  # refused attempts, by kind
    unsent_bytes: Counter[str]  # by peer: bytes that `send` accepted and that never reached the wire

    @property
    def address(self) -> str:
        """The bound endpoint, with its real port. Raises RuntimeError before `start`."""

    async def start(self, on_drop: DropHook | None = None) -> None:
        """Bind the endpoint. Raises OSError if that is not possible.

        `on_drop` is called for each message that arrives and that `recv` does not return.
        """

    def connect(self, peer: str, address: str, on_broken: BrokenHook | None = None) -> None:
        """Open a link to a peer. With the same address again: no effect; with another address: a new link.

        `on_broken` is called when the connection of the link is lost.
        """

    def disconnect(self, peer: str) -> None:
        """Close the link. Messages in its socket are still sent, for a bounded time."""

    def send(self, peer: str, frames: Sequence[Buffer]) -> bool:
        """Give a message to the link, which keeps the buffers.

        Returns False without a link, or if the link is full.
        """

    async def wait_writable(self, peer: str, timeout_s: float) -> bool:
        """Wait until the link can take a message. Returns False without a link, or after `timeout_s`."""

    async def recv(self) -> Received:
        """The next message of any peer. Raises ConnectionError once the links are closed."""

    def signer(self, device: str) -> bytes | None:
        """The signing key to which an allow-list binds a device; b"" if it is not listed.

        None: there is no allow-list.
        """

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all accepted messages have left this process.

        Returns False if some had not after `timeout_s`.
        """

    async def close(self) -> None:
        """Close all links. Messages in sockets are still sent, for a bounded time. May be called again."""
