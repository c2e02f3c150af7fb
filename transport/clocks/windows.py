"""Conservative time windows: how devices with a virtual clock agree without a coordinator. Sans-I/O.

All devices of a run take part, also those that join later. In window w each device announces to every other
the earliest time at which it can cause an event: its own next event, or the arrival of a message that it sent
since its last announcement. The window starts at T, the minimum of all announcements. Every device acts at T
or later, and a message takes at least the lookahead L. So no future message arrives before T + L, and all
events before that time may happen. (The "YAWNS" windows of Nicol. A distributed minimum replaces the null
messages of Chandy and Misra, 1979, because it skips idle time at once.)

A window is complete when all announcements and all messages that they count have arrived. Each device numbers
its messages to each other device from 1, over all connections between the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from transport.wire.limits import NEVER_NS
from transport.wire.messages import Window

LIFE_BITS = 40  # of a sequence number; the higher bits hold the number of the process (`life`)
ABSENT = -2  # the round of a device that has not joined yet or has left
STARTED = -1  # the round of a device that is present and has closed no round


@dataclass(frozen=True, slots=True)
class Grant:
    """A window: all events are at `start_ns` or later, and those before `horizon_ns` may happen.

    `slowest_round`: the round that every present device has closed; None if no device is present.
    """

    start_ns: int
    horizon_ns: int
    slowest_round: int | None


class Windows:
    """One device's part in the agreement.

    `lookahead_ns`: the smallest latency of any link. `life`: the number of earlier processes of this device.
    Raises ValueError for a lookahead below 1 ns.
    """

    def __init__(self, me: str, group: Iterable[str], lookahead_ns: int, life: int = 0) -> None:
        if lookahead_ns < 1:
            raise ValueError("virtual time needs a link latency above 0: without lookahead it cannot advance")
        self.index = 0
        self._live = {device for device in group if device != me}
        self._lookahead_ns, self._life = lookahead_ns, life
        self._sent: Counter[str] = Counter()
        self._received: Counter[str] = Counter()  # the highest number without a gap before it
        self._early: dict[str, set[int]] = {}  # numbers that arrived before a lower one
        self._in_flight_ns = NEVER_NS
        self._own: Window | None = None
        self._incomplete: set[str] = set()  # devices for which the announced window waits
        self._announced: dict[str, dict[int, Window]] = {}

    def has_ended(self, device: str) -> bool:
        """Whether a window was granted in which the device announced its end, or it died."""
        return device not in self._live

    @property
    def others(self) -> list[str]:
        """The devices whose announcements are required."""
        return sorted(self._live)

    def on_sent(self, peer: str, arrive_ns: int) -> None:
        """A message was sent to a device of the group."""
        self._sent[peer] += 1
        self._in_flight_ns = min(self._in_flight_ns, arrive_ns)

    def on_received(self, source: str, seq: int) -> None:
        """A message of a device of the group arrived; it is handled at its arrival time."""
        early = self._early.setdefault(source, set())
        early.add(seq)
        while self._received[source] + 1 in early:
            self._received[source] += 1
            early.remove(self._received[source])
        self._update_incomplete(source)

    def announce(self, next_ns: int | None, round_: int, last: bool = False) -> dict[str, Window]:
        """This device's announcement of the next window, for each other device. `last`: this device ends."""
        earliest = min(NEVER_NS if next_ns is None else next_ns, self._in_flight_ns)
        self._in_flight_ns = NEVER_NS
        self._own = Window(self.index, earliest, round_, 0, last, self._life)
        self._incomplete = {peer for peer in self._live if not self._complete(peer)}
        return {
            peer: Window(self.index, earliest, round_, self._sent[peer], last, self._life)
            for peer in sorted(self._live)
        }

    def on_window(self, source: str, window: Window) -> None:
        """Another device announced a window."""
        self._announced.setdefault(source, {})[window.index] = window
        self._update_incomplete(source)

    def expects(self, source: str) -> bool:
        """Whether another announcement of a device is due."""
        return source in self._live and not any(w.last for w in self._announced.get(source, {}).values())

    def remove_dead(self, source: str) -> None:
        """A device died without a last announcement: do not wait for it."""
        self._live.discard(source)
        self._incomplete.discard(source)

    def missing(self) -> list[str]:
        """The devices for which the announced window waits."""
        return sorted(self._incomplete)

    @property
    def complete(self) -> bool:
        """Whether the announced window can be granted."""
        return self._own is not None and not self._incomplete

    def grant(self) -> Grant | None:
        """The announced window once it is complete, else None. Then the next window can be announced.

        Raises RuntimeError if a device is present and no device has an event left. If none is present, the
        window is granted: devices that have yet to join learn from it that they never will.
        """
        if self._own is None or not self.complete:
            return None
        told = [self._own, *(self._announced[peer].pop(self.index) for peer in sorted(self._live))]
        gone = [peer for peer, window in zip(sorted(self._live), told[1:], strict=True) if window.last]
        start = min(window.next_ns for window in told)
        rounds = [window.round for window in told if window.round != ABSENT]
        self._live.difference_update(gone)
        self._own = None
        self.index += 1
        if start >= NEVER_NS and rounds:
            raise RuntimeError("virtual time cannot advance: no device has an event left")
        return Grant(start, start + self._lookahead_ns, min(rounds, default=None))

    def _update_incomplete(self, peer: str) -> None:
        if peer in self._incomplete and self._complete(peer):
            self._incomplete.discard(peer)

    def _complete(self, peer: str) -> bool:
        window = self._announced.get(peer, {}).get(self.index)
        return window is not None and self._received[peer] >= window.sent
