"""Which time a device lives by. One interface, two clocks: `real` here, `virtual` in virtual_clock.py."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

FAIR = 8  # events that are due at once before others may run


class Clock(Protocol):
    """Tells the time and waits for it. For one event loop, with one waiter.

    The caller keeps what is to happen at which time; the clock says when it may.
    """

    def now(self) -> int:
        """The time in ns: monotonic (real), or that of the event at hand (virtual)."""

    async def reach(self, due_ns: int | None) -> bool:
        """Until `due_ns` (None: nothing is planned). True: it is time now. False: there may be news first."""

    def poke(self) -> None:
        """There is news from outside: whoever waits in `reach` looks again, in real time at once."""

    def completed_ns(self, asked_ns: int) -> int:
        """When work that was asked for then is done; in virtual time only local steps take any."""


class RealClock:
    """Monotonic time, the same for all processes of a host. Waits end at a deadline, never by polling.

    `wall`: counted from 1970 on, for devices on several hosts, of which each counts from its own boot. Links
    are then as exact as the hosts' clocks agree (NTP: milliseconds). One that is set later is not followed.
    """

    def __init__(self, wall: bool = False) -> None:
        self._news, self._due_at_once = False, 0
        self._waiter: asyncio.Future[None] | None = None
        self._offset_ns = time.time_ns() - time.monotonic_ns() if wall else 0

    def now(self) -> int:
        return time.monotonic_ns() + self._offset_ns

    async def reach(self, due_ns: int | None) -> bool:
        """A timer of asyncio may ring early by its resolution; then it is asked for the rest."""
        if not self._news:
            wait_s = None if due_ns is None else (due_ns - self.now()) / 1e9
            if wait_s is not None and wait_s <= 0:
                self._due_at_once += 1
                if self._due_at_once % FAIR == 0:
                    await asyncio.sleep(0)  # whatever is due, sockets are read in between
                return True
            await self._wait(wait_s)
        self._news = False
        return due_ns is not None and self.now() >= due_ns

    async def _wait(self, wait_s: float | None) -> None:
        """Until there is news, or for so long. (asyncio.wait_for makes a task of each wait.)"""
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = None if wait_s is None else loop.call_later(wait_s, _wake, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def poke(self) -> None:
        self._news = True
        if self._waiter is not None:
            _wake(self._waiter)

    def completed_ns(self, asked_ns: int) -> int:
        return self.now()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
