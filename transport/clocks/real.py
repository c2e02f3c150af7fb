"""The interface of clocks, and the real clock. The virtual clock is in virtual.py."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from transport.wire.limits import NEVER_NS

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

    def poke(self, due_ns: int = 0) -> None:
        """Report news from outside: the waiter in `reach` checks again, in real time at once.

        `due_ns`: the time of an event that was planned. The waiter then checks again at that time.
        """

    def completed_ns(self, asked_ns: int) -> int:
        """When work that is requested at `asked_ns` is done. In virtual time only local steps take time."""


class RealClock:
    """Monotonic time, the same for all processes of a host. Waits end by a timer, never by polling.

    `wall`: count from 1970, for devices on several hosts, because each host counts from its own boot.
    Latencies are then as exact as the hosts' clocks agree (NTP: milliseconds). Later changes of a host's
    clock have no effect.
    """

    def __init__(self, wall: bool = False) -> None:
        self._news_ns, self._due_at_once = NEVER_NS, 0  # time of the earliest news that nobody waited for
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wake_ns = NEVER_NS  # time of the timer
        self._offset_ns = time.time_ns() - time.monotonic_ns() if wall else 0

    def now(self) -> int:
        return time.monotonic_ns() + self._offset_ns

    async def reach(self, due_ns: int | None) -> bool:
        """A timer of asyncio may fire early by its resolution; the caller then waits for the rest."""
        due = NEVER_NS if due_ns is None else min(due_ns, NEVER_NS)
        news_ns, self._news_ns = self._news_ns, NEVER_NS
        if due <= news_ns:  # the caller knows of an event that is no later
            if due <= self.now():
                self._due_at_once += 1
                if self._due_at_once % FAIR == 0:
                    await asyncio.sleep(0)  # let other tasks read sockets
                return True
            await self._wait(due)
        return self.now() >= due

    async def _wait(self, due_ns: int) -> None:
        """Wait for news, or until `due_ns`. (asyncio.wait_for would create a task for each wait.)"""
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        self._wake_at(due_ns, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            self._cancel_timer()

    def _wake_at(self, due_ns: int, waiter: asyncio.Future[None]) -> None:
        self._cancel_timer()
        self._wake_ns = due_ns
        if due_ns < NEVER_NS:
            wait_s = (due_ns - self.now()) / 1e9
            self._timer = asyncio.get_running_loop().call_later(wait_s, _wake, waiter)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def poke(self, due_ns: int = 0) -> None:
        """The waiter keeps waiting if it wakes before `due_ns` anyway: each turn of its task costs time."""
        if self._waiter is None:
            self._news_ns = min(self._news_ns, due_ns)
        elif due_ns <= self.now():
            _wake(self._waiter)
        elif due_ns < self._wake_ns:
            self._wake_at(due_ns, self._waiter)

    def completed_ns(self, asked_ns: int) -> int:
        return self.now()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
