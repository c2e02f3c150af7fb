"""The virtual clock: time goes from event to event, as fast as the processors allow, and depends on no load.

Devices agree on it window by window (windows.py) over links of their own, whose messages are the harness's
and are in nobody's budget or books.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from transport.clocks.windows import LIFE_BITS, STARTED, Grant, Windows
from transport.links.interface import Links
from transport.wire.messages import Envelope, Window
from transport.wire.packing import pack

WARN_S = 30.0  # real seconds: how often a device that waits for another says so
ROOM_S = 5.0
LAST_WORD_S = 1.0  # what a device that ends has said may be read after its link is seen to break
log = logging.getLogger("unweft")


def life_name(device: str, life: int) -> str:
    """How clocks call a device: one that returns is another process, known beforehand like all others."""
    return f"{device}#{life}" if life else device


class VirtualClock:
    """`group`: the address of every device of the run by `life_name`, this one's too. Time starts at 0."""

    def __init__(
        self, device: str, life: int, group: Mapping[str, str], lookahead_ns: int, links: Links
    ) -> None:
        self.device = device
        self._envelope = Envelope(device, 0)
        self.grant: Grant | None = None
        self.round = STARTED  # the last round that this device has closed, or ABSENT
        self._group, self._links = group, links
        self._windows = Windows(life_name(device, life), group, lookahead_ns, life)
        self._waiter: asyncio.Future[None] | None = None
        self._warning: asyncio.TimerHandle | None = None
        self._now_ns = self._horizon_ns = 0

    def start(self) -> None:
        """Link to everyone's clock. What breaks a link is a death from outside; see `Windows.lost`."""
        for device in self._windows.others:
            self._links.connect(_link(device), self._group[device], self.broken)

    def now(self) -> int:
        return self._now_ns

    @property
    def windows(self) -> int:
        """How many windows this device has agreed on."""
        return self._windows.index

    async def reach(self, due_ns: int | None) -> bool:
        """True if nothing can come before `due_ns`; False once a window has brought what there is."""
        if due_ns is not None and due_ns < self._horizon_ns:
            self._now_ns = max(self._now_ns, due_ns)
            return True
        await self._agree(due_ns)
        return False

    def poke(self) -> None:
        """What comes from outside is looked at once a window has been agreed on: nothing to do."""

    def completed_ns(self, asked_ns: int) -> int:
        return asked_ns

    # -- messages --------------------------------------------------------------------------------------
    def sent(self, peer_address: str, arrive_ns: int) -> None:
        """A message has gone to the device at an address."""
        for device, address in self._group.items():
            if address == peer_address:
                self._windows.sent(device, arrive_ns)

    def received(self, source: str, seq: int) -> None:
        life, number = divmod(seq, 1 << LIFE_BITS)
        self._windows.received(life_name(source, life), number)
        self._look()

    def heard(self, source: str, window: Window) -> None:
        self._windows.heard(life_name(source, window.life), window)
        self._look()

    def broken(self, link: str) -> None:
        """A link has broken. If it is one of the clock's and no last word comes, its device has died."""
        if link[:1] == "~":
            self._mourn_later(link[1:])

    def _mourn_later(self, device: str) -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(due := loop.time() + LAST_WORD_S, self._mourn, device, due)

    def _mourn(self, device: str, due: float) -> None:
        stopped = asyncio.get_running_loop().time() > due + LAST_WORD_S
        if stopped:  # meanwhile: what has come is read first
            self._mourn_later(device)
        elif self._windows.expects(device):
            log.warning("%s: %s died outside virtual time: this run cannot be repeated", self.device, device)
            self._windows.lost(device)
            self._look()

    # -- windows ---------------------------------------------------------------------------------------
    async def finish(self) -> None:
        """The end of this device's stream: no one waits for it from here on."""
        await self._announce(None, last=True)

    async def _agree(self, due_ns: int | None) -> None:
        await self._announce(due_ns)
        if not self._windows.complete:
            await self._wait()
        self.grant = self._windows.grant()
        assert self.grant is not None
        self._horizon_ns = self.grant.horizon_ns

    async def _wait(self) -> None:
        """Until the announced window is complete. (asyncio.wait_for makes a task of each wait.)"""
        self._waiter = asyncio.get_running_loop().create_future()
        self._warn_later()
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._warning is not None:
                self._warning.cancel()

    def _warn_later(self) -> None:
        self._warning = asyncio.get_running_loop().call_later(WARN_S, self._warn)

    def _warn(self) -> None:
        log.warning("%s: virtual time waits for %s", self.device, ", ".join(self._windows.missing()))
        self._warn_later()

    def _look(self) -> None:
        """Wake who waits once there is nothing left to wait for."""
        if self._waiter is not None and self._windows.complete and not self._waiter.done():
            self._waiter.set_result(None)

    async def _announce(self, due_ns: int | None, last: bool = False) -> None:
        for peer, window in self._windows.announce(due_ns, self.round, last).items():
            frames = pack(self._envelope, window)
            while not self._links.send(_link(peer), frames):
                if not await self._links.wait_writable(_link(peer), ROOM_S):
                    log.warning("%s: no room on the clock's link to %s", self.device, peer)


def _link(device: str) -> str:
    return f"~{device}"
