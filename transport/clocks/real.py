"""The interface of clocks, and the real clock. The virtual clock is in virtual.py."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

FAIR = 8  # events that are due at once, between two turns of other tasks


class Clock(Protocol):
    """Tells the time and waits for it. For one event loop, with one waiter.

    The caller keeps the events and their times; the clock says when an event may happen.
    """

    def now(self) -> int:
        """The time in ns: monotonic (real), or that of the present event (virtual)."""

    async def reach(self, due_ns: int | None) -> bool:
        """Wait until `due_ns` (None: nothing is planned) or until there may be news.

        Returns whether `due_ns` is reached.
        """

    def poke(self) -> None:
        """Report news from outside: the waiter in `reach` checks again, in real time at once."""

    def completed_ns(self, asked_ns: int) -> int:
        """When work that is requested at `asked_ns` is done. In virtual time only local steps take time."""


class RealClock:
    """Monotonic time, the same for all processes of a host. Waits end by a timer, never by polling.

    `wall`: count from 1970, for devices on several hosts, because each host counts from its own boot.
    Latencies are then as exact as the hosts' clocks agree (NTP: milliseconds). Later changes of a host's
    clock have no effect.
    """

    def __init__(self, wall: bool = False) -> None:
        self._news, self._due_at_once = False, 0
        self._waiter: asyncio.Future[None] | None = None
        self._offset_ns = time.time_ns() - time.monotonic_ns() if wall else 0

    def now(self) -> int:
        return time.monotonic_ns() + self._offset_ns

    async def reach(self, due_ns: int | None) -> bool:
        """A timer of asyncio may fire early by its resolution; the caller then waits for the rest."""
        if not self._news:
            wait_s = None if due_ns is None else (due_ns - self.now()) / 1e9
            if wait_s is not None and wait_s <= 0:
                self._due_at_once += 1
                if self._due_at_once % FAIR == 0:
                    await asyncio.sleep(0)  # let other tasks read sockets
                return True
            await self._wait(wait_s)
        self._news = False
        return due_ns is not None and self.now() >= due_ns

    async def _wait(self, wait_s: float | None) -> None:
        """Wait for news, or for `wait_s`. (asyncio.wait_for would create a task for each wait.)"""
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
