"""One device's end of all its links, whatever carries them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from transport.wire.messages import Buffer

DropHook = Callable[[str, str, int], None]  # claimed source, reason, wire bytes
BrokenHook = Callable[[str], None]  # the peer whose connection was lost


@dataclass(slots=True)  # not frozen: one is made of each message
class Received:
    """A message as it came in. `source`: what the connection claims; the envelope must agree.

    `wire_bytes`: what it took on the wire, framing and encryption included. `user`: the device id that the
    connection has proved with its key; empty where no allow-list binds ids to keys.
    """

    source: str
    frames: tuple[Buffer, ...]
    wire_bytes: int
    user: str = ""


class Links(Protocol):
    """Connections to neighbours. Sending never blocks and never raises for a peer that is gone.

    Messages of one link arrive in order and at most once. For use from one event loop, with one receiver.
    """

    security_events: Counter[str]  # attempts that were refused, by kind
    unsent_bytes: Counter[str]  # by peer: taken by `send`, but certainly never on the wire

    @property
    def address(self) -> str:
        """The endpoint that is bound, with its real port. Raises RuntimeError before `start`."""

    async def start(self, on_drop: DropHook | None = None) -> None:
        """Bind. Raises OSError when the endpoint cannot be had.

        `on_drop` is called for each message that arrives and that `recv` does not return.
        """

    def connect(self, peer: str, address: str, on_broken: BrokenHook | None = None) -> None:
        """Have a link to a peer. Again with the same address: nothing; with another: a new link.

        `on_broken` is called when the connection of the link is lost.
        """

    def disconnect(self, peer: str) -> None:
        """Give the link up; what its socket still holds goes out first, for a bounded time."""

    def send(self, peer: str, frames: Sequence[Buffer]) -> bool:
        """Hand a message to the link, which keeps the buffers. False: no link, or it holds all it may."""

    async def wait_writable(self, peer: str, timeout_s: float) -> bool:
        """Until the link can take a message; False: no link, or not within `timeout_s`."""

    async def recv(self) -> Received:
        """The next message from anyone. Raises ConnectionError once the links are closed."""

    async def flush(self, timeout_s: float) -> bool:
        """Until all that was sent has left this process; False: after `timeout_s` some of it had not."""

    async def close(self) -> None:
        """Give everything up; what is still held goes out first, for a bounded time. Can be called again."""
