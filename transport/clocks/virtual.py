"""The virtual clock: time advances from event to event and does not depend on the load of the machine.

Devices agree on the time window by window (windows.py). They use separate links, whose messages belong to the
emulator and are in no budget and no account.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from transport.clocks.windows import LIFE_BITS, STARTED, Grant, Windows
from transport.links.interface import Links
from transport.wire.messages import Envelope, Window
from transport.wire.packing import pack

WARN_S = 30.0  # real seconds between warnings that a device waits for another
ROOM_S = 5.0  # real seconds between warnings that a clock link is full
LAST_WORD_S = 1.0  # real seconds in which the last messages of a broken link may still be read
log = logging.getLogger("unweft")


def life_name(device: str, life: int) -> str:
    """The name of a process for the clocks.

    A device that returns is a new process with the next number `life`.
    """
    return f"{device}#{life}" if life else device


def device_of(life: str) -> str:
    """The device of a process, by its `life_name`."""
    return life.partition("#")[0]


class VirtualClock:
    """The virtual clock of one process. Time starts at 0.

    `group`: the address of every process of the run by `life_name`, this one included. `lookahead_ns`: the
    smallest latency of any link.
    """

    def __init__(
        self, device: str, life: int, group: Mapping[str, str], lookahead_ns: int, links: Links
    ) -> None:
        self.device, self._life = device, life
        self._envelope = Envelope(device, 0)
        self.grant: Grant | None = None
        self.round = STARTED  # the last round that this device closed, or ABSENT
        self._group, self._links = group, links
        self._windows = Windows(life_name(device, life), group, lookahead_ns, life)
        self._waiter: asyncio.Future[None] | None = None
        self._warning: asyncio.TimerHandle | None = None
        self._now_ns = self._horizon_ns = self._last_arrival_ns = 0
        self._lookahead_ns = lookahead_ns

    def start(self) -> None:
        """Connect to all clocks.

        A broken link means a death outside virtual time; see `Windows.remove_dead`.
        """
        for device in self._windows.others:
            self._links.connect(_link(device), self._group[device], self.on_link_broken)

    def now(self) -> int:
        return self._now_ns

    @property
    def windows(self) -> int:
        """The number of windows on which this device has agreed."""
        return self._windows.index

    async def reach(self, due_ns: int | None) -> bool:
        """Returns True if no message can arrive before `due_ns`; False after a new window was agreed on."""
        if due_ns is not None and due_ns < self._horizon_ns:
            self._now_ns = max(self._now_ns, due_ns)
            return True
        await self._agree(due_ns)
        return False

    def poke(self, due_ns: int = 0) -> None:
        """Nothing to do: news from outside is read after the next window."""

    def completed_ns(self, asked_ns: int) -> int:
        return asked_ns

    @property
    def earlier_life_ended(self) -> bool:
        """Whether the process of this device before this one has ended. Then its records are complete."""
        return not self._life or self._windows.has_ended(life_name(self.device, self._life - 1))

    # -- messages --------------------------------------------------------------------------------------
    def on_sent(self, peer_address: str, arrive_ns: int) -> None:
        """A message was sent to the device at `peer_address`."""
        self._last_arrival_ns = max(self._last_arrival_ns, arrive_ns)
        for device, address in self._group.items():
            if address == peer_address:
                self._windows.on_sent(device, arrive_ns)

    def on_received(self, source: str, seq: int) -> None:
        """A message with this sequence number arrived."""
        life, number = divmod(seq, 1 << LIFE_BITS)
        self._windows.on_received(life_name(source, life), number)
        self._wake_if_complete()

    def on_window(self, source: str, window: Window) -> None:
        """Another device announced its window."""
        self._windows.on_window(life_name(source, window.life), window)
        self._wake_if_complete()

    def on_link_broken(self, link: str) -> None:
        """A link broke. If it is a clock link and no last announcement arrives, its device has died."""
        if link[:1] == "~":
            self._check_death_later(link[1:])

    def _check_death_later(self, device: str) -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(due := loop.time() + LAST_WORD_S, self._check_death, device, due)

    def _check_death(self, device: str, due: float) -> None:
        """Declare a device dead if its last announcement is still missing."""
        stopped = asyncio.get_running_loop().time() > due + LAST_WORD_S
        if stopped:  # this process was suspended; first read the messages that arrived meanwhile
            self._check_death_later(device)
        elif self._windows.expects(device):
            log.warning("%s: %s died outside virtual time; this run cannot be repeated", self.device, device)
            self._windows.remove_dead(device)
            self._wake_if_complete()

    # -- windows ---------------------------------------------------------------------------------------
    async def outlast_messages(self) -> None:
        """Wait until all messages have been read that others sent before they handled this device's last one.

        A window starts after all earlier windows' messages were read. It is at most a lookahead long.
        """
        until_ns = self._last_arrival_ns + 2 * self._lookahead_ns
        while not await self.reach(until_ns):
            pass

    async def finish(self) -> None:
        """Announce the end of this device: no other device waits for it from now on."""
        await self._announce(None, last=True)

    async def _agree(self, due_ns: int | None) -> None:
        await self._announce(due_ns)
        if not self._windows.complete:
            await self._wait()
        self.grant = self._windows.grant()
        assert self.grant is not None
        self._horizon_ns = self.grant.horizon_ns

    async def _wait(self) -> None:
        """Wait until the announced window is complete. (asyncio.wait_for would create a task for each
        wait.)
        """
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
        log.warning("%s: virtual time is waiting for %s", self.device, ", ".join(self._windows.missing()))
        self._warn_later()

    def _wake_if_complete(self) -> None:
        """Wake the waiter if the announced window is complete."""
        if self._waiter is not None and self._windows.complete and not self._waiter.done():
            self._waiter.set_result(None)

    async def _announce(self, due_ns: int | None, last: bool = False) -> None:
        for peer, window in self._windows.announce(due_ns, self.round, last).items():
            frames = pack(self._envelope, window)
            while not self._links.send(_link(peer), frames):
                if not await self._links.wait_writable(_link(peer), ROOM_S):
                    log.warning("%s: the clock's link to %s is full", self.device, peer)


def _link(device: str) -> str:
    return f"~{device}"
