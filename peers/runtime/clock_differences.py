"""How far the clocks of other hosts are from the clock of this one, measured with the heartbeat.

A message names its departure on the clock of its sender. Its receipt less its departure is its transit time
plus the difference of the two clocks. Each device keeps the smallest such value of each peer, and tells it to
the peer when it sends or answers a probe. Half the difference of both values is the difference of the clocks;
half their sum, half the shortest round trip, bounds its error (NTP's on-wire protocol, RFC 5905, section 8).

Only devices on several hosts measure. Within one host all processes have the same clock.
"""

from __future__ import annotations

from collections import defaultdict

from peers.protocol.actions import Action, Tell
from transport.shaping.accounting import Accounts
from transport.wire.messages import Ack, Ping, Transit

PERIOD_NS = 30_000_000_000  # a smallest value is of this period and the one before: clocks drift
TELL_NS = 1_000_000_000  # least time between two Transits to one peer


class Lowest:
    """The smallest value of the present and the last period."""

    def __init__(self) -> None:
        self._now: int | None = None
        self._before: int | None = None
        self._began_ns = 0

    def add(self, value: int, now_ns: int) -> None:
        if now_ns - self._began_ns >= PERIOD_NS:
            self._now, self._before, self._began_ns = None, self._now, now_ns
        self._now = value if self._now is None else min(self._now, value)

    @property
    def value(self) -> int | None:
        known = [value for value in (self._now, self._before) if value is not None]
        return min(known, default=None)


class ClockDifferences:
    """Measures by peer, and writes the result into the peer's account."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._transit: defaultdict[str, Lowest] = defaultdict(Lowest)
        self._told_ns: dict[str, int] = {}

    def on_received(self, peer: str, depart_ns: int, now_ns: int) -> None:
        """A message of a peer was read from the socket, before it waits for its emulated arrival."""
        self._transit[peer].add(now_ns - depart_ns, now_ns)

    def on_transit(self, peer: str, transit: Transit) -> None:
        """A peer told its smallest value of messages from this device."""
        here = self._transit[peer].value
        if here is not None:
            difference_ns = (here - transit.lowest_ns) // 2
            error_ns = abs(here + transit.lowest_ns) // 2
            self._accounts.link(peer).clock_s = {"difference": difference_ns / 1e9, "error": error_ns / 1e9}

    def told_with(self, action: Action, now_ns: int) -> Tell | None:
        """The Transit that goes to a peer together with a probe, or with its answer."""
        if not isinstance(action, Tell) or not isinstance(action.message, Ping | Ack):
            return None
        lowest = self._transit[action.peer].value
        if lowest is None or now_ns - self._told_ns.get(action.peer, now_ns - TELL_NS) < TELL_NS:
            return None
        self._told_ns[action.peer] = now_ns
        return Tell(action.peer, Transit(lowest))

    def forget_peer(self, peer: str) -> None:
        self._transit.pop(peer, None)
        self._told_ns.pop(peer, None)
