"""Host names of endpoints, resolved in threads of their own.

libzmq resolves a name in the thread that carries all links, and does so again at each reconnection. So a link
connects to numeric addresses only. Names come from seeds and from other devices, so everything here is
bounded: the number of lookups that wait, their time, and the cache.
"""

from __future__ import annotations

import asyncio
import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

WORKERS = 2  # threads: two names that nobody answers for delay the others by one lookup
MOST_WAITING = 16
MOST_CACHED = 256
KNOWN_S, UNKNOWN_S = 60.0, 30.0  # for which a found name, and an unknown one, are cached

Found = Callable[[str | None], None]


class TooManyNames(ValueError):
    """Too many names wait for their lookup."""


class Resolver:
    """Turns `tcp://name:port` into `tcp://address:port`. For use from one event loop."""

    def __init__(self, lookup: Callable[[str, bool], str | None] | None = None) -> None:
        self._lookup = lookup or first_address
        self._cache: dict[str, tuple[float, str | None]] = {}  # by host: valid until, address
        self._waiting: dict[str, list[Found]] = {}
        self._jobs: queue.Queue[tuple[str, bool, asyncio.AbstractEventLoop] | None] = queue.Queue()
        self._threads = 0

    def resolve(self, endpoint: str, found: Found) -> None:
        """Call `found` with the numeric endpoint, or None: at once if it is known, else later in the loop.

        Raises TooManyNames.
        """
        scheme, _, rest = endpoint.partition("://")
        host, _, port = rest.rpartition(":")
        if scheme != "tcp" or is_numeric(host):
            found(endpoint)
            return

        def done(address: str | None) -> None:
            found(None if address is None else f"{scheme}://{address}:{port}")

        until, address = self._cache.get(host, (0.0, None))
        if time.monotonic() < until:
            done(address)
        elif host in self._waiting:
            self._waiting[host].append(done)
        elif len(self._waiting) >= MOST_WAITING:
            raise TooManyNames(f"{host!r}: {MOST_WAITING} names wait for their lookup already")
        else:
            self._waiting[host] = [done]
            self._jobs.put((host, "[" in rest, asyncio.get_running_loop()))
            if self._threads < WORKERS:
                self._threads += 1
                threading.Thread(target=self._work, name="resolver", daemon=True).start()

    def close(self) -> None:
        """End the threads. A lookup that hangs ends with its process, since the threads are daemons."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            host, ipv6, loop = job
            address = self._lookup(host, ipv6)
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._on_result, host, address)

    def _on_result(self, host: str, address: str | None) -> None:
        for_s = UNKNOWN_S if address is None else KNOWN_S
        self._cache.pop(host, None)
        self._cache[host] = time.monotonic() + for_s, address
        while len(self._cache) > MOST_CACHED:
            del self._cache[next(iter(self._cache))]
        for done in self._waiting.pop(host, []):
            with suppress(ValueError):  # the endpoint is wrong in another way
                done(address)


def is_numeric(host: str) -> bool:
    """Whether a host is an address, `*` or an IPv6 address in brackets."""
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host in ("*", "")
    return True


def first_address(host: str, ipv6: bool) -> str | None:
    """The first address of a name; None if it has none."""
    try:
        family = socket.AF_UNSPEC if ipv6 else socket.AF_INET
        found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    address = str(found[0][4][0])
    return f"[{address}]" if ":" in address else address
