"""Conservative time windows: how devices with a virtual clock agree, with nobody in charge. Sans-I/O.

All devices of a run take part, also those that are to join later. In window w each one announces to every
other the earliest time at which anything can happen because of it: its own next event, or the arrival of
what it has sent since its last announcement. The window starts at T = the least of all. Whoever acts in it
acts at T or later, and a message takes at least the lookahead L, so nothing that is yet to be sent arrives
before T + L: everything before that may happen. (Nicol's "YAWNS" windows; a distributed minimum instead of
the null messages of Chandy and Misra, since it skips idle time at once.)

A window is complete when every announcement is in and so are all messages that the announcements count: each
device numbers what it sends to another from 1 on, over all connections that there are between the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from transport.wire.limits import NEVER_NS
from transport.wire.messages import Window

LIFE_BITS = 40  # a message's number: above these bits, which life of its device sent it
ABSENT = -2  # the round of a device that has not joined yet, or has gone
STARTED = -1  # the round of one that is there and has closed none


@dataclass(frozen=True, slots=True)
class Grant:
    """A window: what is before `horizon_ns` may happen, nothing is before `start_ns`.

    `slowest_round`: the round that every device that is there has closed; None: nobody is there.
    """

    start_ns: int
    horizon_ns: int
    slowest_round: int | None


class Windows:
    """One device's part. `lookahead_ns`: the least latency of any link; ValueError unless it is above 0.
    `life`: how many of its name have been before it."""

    def __init__(self, me: str, group: Iterable[str], lookahead_ns: int, life: int = 0) -> None:
        if lookahead_ns < 1:
            raise ValueError("virtual time needs a link latency above 0: without lookahead it cannot advance")
        self.index = 0
        self._live = {device for device in group if device != me}
        self._lookahead_ns, self._life = lookahead_ns, life
        self._sent: Counter[str] = Counter()
        self._received: Counter[str] = Counter()  # up to which number, without a gap
        self._early: dict[str, set[int]] = {}  # what came before one with a lower number
        self._in_flight_ns = NEVER_NS
        self._own: Window | None = None
        self._incomplete: set[str] = set()  # who keeps the announced window from being complete
        self._announced: dict[str, dict[int, Window]] = {}

    @property
    def others(self) -> list[str]:
        """Whose announcements are waited for."""
        return sorted(self._live)

    def on_sent(self, peer: str, arrive_ns: int) -> None:
        """A message has gone to a device of the group."""
        self._sent[peer] += 1
        self._in_flight_ns = min(self._in_flight_ns, arrive_ns)

    def on_received(self, source: str, seq: int) -> None:
        """A message of a device of the group is here, to be handled when it arrives."""
        early = self._early.setdefault(source, set())
        early.add(seq)
        while self._received[source] + 1 in early:
            self._received[source] += 1
            early.remove(self._received[source])
        self._update_incomplete(source)

    def announce(self, next_ns: int | None, round_: int, last: bool = False) -> dict[str, Window]:
        """This device's announcement for the coming window, for each other device. `last`: it has gone."""
        earliest = min(NEVER_NS if next_ns is None else next_ns, self._in_flight_ns)
        self._in_flight_ns = NEVER_NS
        self._own = Window(self.index, earliest, round_, 0, last, self._life)
        self._incomplete = {peer for peer in self._live if not self._complete(peer)}
        return {
            peer: Window(self.index, earliest, round_, self._sent[peer], last, self._life)
            for peer in sorted(self._live)
        }

    def on_window(self, source: str, window: Window) -> None:
        self._announced.setdefault(source, {})[window.index] = window
        self._update_incomplete(source)

    def expects(self, source: str) -> bool:
        """Whether another announcement of a device has to come."""
        return source in self._live and not any(w.last for w in self._announced.get(source, {}).values())

    def remove_dead(self, source: str) -> None:
        """A device has died without a last announcement: nobody waits for it any more."""
        self._live.discard(source)
        self._incomplete.discard(source)

    def missing(self) -> list[str]:
        """Who keeps the announced window from being complete."""
        return sorted(self._incomplete)

    @property
    def complete(self) -> bool:
        """Whether the announced window can be granted."""
        return self._own is not None and not self._incomplete

    def grant(self) -> Grant | None:
        """The window that was announced, once it is complete; the next one can be announced then.

        Raises RuntimeError when nothing is left to happen anywhere.
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
        if start >= NEVER_NS:
            raise RuntimeError("virtual time stands still: no device has anything left to do")
        return Grant(start, start + self._lookahead_ns, min(rounds, default=None))

    def _update_incomplete(self, peer: str) -> None:
        if peer in self._incomplete and self._complete(peer):
            self._incomplete.discard(peer)

    def _complete(self, peer: str) -> bool:
        window = self._announced.get(peer, {}).get(self.index)
        return window is not None and self._received[peer] >= window.sent
