"""The shaper of one device: when each message leaves and when it arrives. Sans-I/O: times in, departures out.

There are two classes. *Control* messages (membership, pings) leave at the next `pop`. They take tokens and
quota, but never wait behind data, neither in a queue nor in transmission. Control that does not fit in the
round's quota waits for the next round (held_control.py). *Data* waits in one first-in-first-out queue per
link. The links take turns, message by message, within the device's token bucket, the link's own bucket and
the round's quota. The depth of a bucket is two frames (method 8).

The buckets implement the budget. Latency is separate from them: a line of rate R sends one message after the
other, depart = max(now, previous depart) + size / R, on the device's radio and on the link, whichever is
later. Then arrive = depart + latency + jitter, never before an earlier message of the same class on the same
link.

A *lost* message was sent: it uses transmission time, tokens and quota, but is not received. At any time and
for each peer and cause: queued = sent + abandoned + purged + pending, and sent includes lost.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np

from coordinator_free.seeded_random import blake2b_128, generator
from transport.shaping.accounting import CAUSES
from transport.shaping.channel import cost_bytes
from transport.shaping.held_control import HeldControl
from transport.shaping.outgoing import Departure, Outgoing
from transport.shaping.round_budget import Quota
from transport.shaping.token_bucket import SECOND_NS, TokenBucket

Account = tuple[str, str]  # peer, cause


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """The behaviour of one link. `rate_Bps` None: the device's rate. `outage`: data waits (b/R > tau_max)."""

    rate_Bps: int | None = None
    latency_ns: int = 0
    jitter_ns: int = 0  # added to the latency: uniform in [0, jitter_ns]
    loss: float = 0.0  # probability per message; 1: a partition
    outage: bool = False
    beta_Bps: int = 0  # the quota is charged b + beta b / R (method 8)

    def __post_init__(self) -> None:
        if (self.rate_Bps is not None and self.rate_Bps < 1) or min(self.latency_ns, self.jitter_ns) < 0:
            raise ValueError("a link needs a rate of at least 1 byte/s and no negative latency or jitter")
        if not 0 <= self.loss <= 1:
            raise ValueError("loss must be between 0 and 1")


@dataclass(slots=True)
class Purged:
    """The messages that were removed from the queues before they were sent."""

    messages: int = 0
    bytes: int = 0
    bytes_by_peer: Counter[str] = field(default_factory=Counter)

    def count(self, item: Outgoing) -> None:
        self.messages += 1
        self.bytes += item.wire_bytes
        self.bytes_by_peer[item.peer] += item.wire_bytes


class Counts:
    """Messages and wire bytes by peer and cause."""

    def __init__(self) -> None:
        self.messages: Counter[Account] = Counter()
        self.bytes: Counter[Account] = Counter()

    def count(self, item: Outgoing) -> None:
        self.messages[item.peer, item.cause] += 1
        self.bytes[item.peer, item.cause] += item.wire_bytes

    def forget_peer(self, peer: str) -> None:
        for cause in CAUSES:
            del self.messages[peer, cause], self.bytes[peer, cause]


class _Line:
    """A line that sends one byte after the other at a rate. Control pre-empts data, which then ends later."""

    def __init__(self, rate_Bps: int) -> None:
        self.rate_Bps = rate_Bps
        self._free_ns = self._urgent_free_ns = 0

    def occupy(self, now_ns: int, size: int, urgent: bool) -> int:
        """The time at which the last of `size` bytes has left (ns, rounded up)."""
        takes = -(-size * SECOND_NS // self.rate_Bps)
        self._free_ns = max(now_ns, self._free_ns) + takes
        if not urgent:
            return self._free_ns
        self._urgent_free_ns = max(now_ns, self._urgent_free_ns) + takes
        return self._urgent_free_ns


class _ChannelDraws:
    """Jitter and loss of one class on one link, drawn per message, so that other traffic does not change
    them.
    """

    def __init__(self, draw: np.random.Generator) -> None:
        self._draw = draw
        self._last_arrival_ns = 0

    def after(self, other: _ChannelDraws) -> None:
        """Messages sent from now on arrive after all messages of the other class that are under way."""
        self._last_arrival_ns = max(self._last_arrival_ns, other._last_arrival_ns)

    def arrival(self, depart_ns: int, settings: LinkSettings) -> tuple[int, bool]:
        """The arrival time of a message and whether it is lost."""
        jitter = int(self._draw.integers(settings.jitter_ns, endpoint=True)) if settings.jitter_ns else 0
        lost = bool(settings.loss) and float(self._draw.random()) < settings.loss
        at = max(self._last_arrival_ns, depart_ns + settings.latency_ns + jitter)
        self._last_arrival_ns = at
        return at, lost


class _Link:
    """One peer: its data queue and, if the link has its own rate, its bucket and line."""

    def __init__(self, seed: object, peer: str) -> None:
        self.queue: deque[Outgoing] = deque()
        self.settings = LinkSettings()
        self.held = False
        self.bucket: TokenBucket | None = None
        self.line: _Line | None = None
        self.draws = {
            urgent: _ChannelDraws(generator(repr((seed, peer, urgent)), digest=blake2b_128))
            for urgent in (False, True)
        }

    def apply(self, settings: LinkSettings, depth: int, now_ns: int) -> None:
        self.settings = settings
        if settings.rate_Bps is None:
            self.bucket = self.line = None
        elif self.bucket is None or self.line is None:
            self.bucket, self.line = TokenBucket(settings.rate_Bps, depth, now_ns), _Line(settings.rate_Bps)
        else:
            self.bucket.set_rate(now_ns, settings.rate_Bps)
            self.line.rate_Bps = settings.rate_Bps

    def cost(self, size: int) -> int:
        """The cost of `size` bytes in the quota."""
        rate_Bps = self.settings.rate_Bps
        return size if rate_Bps is None else cost_bytes(size, rate_Bps, self.settings.beta_Bps)

    def earliest(self, now_ns: int) -> int:
        return self.bucket.earliest(now_ns, self.queue[0].wire_bytes) if self.bucket else now_ns


class Shaper:
    """The queues, buckets, quota and channel of one device.

    `seed`: for jitter and loss (run and device). `on_shed`: called with each held message that is shed.
    """

    def __init__(
        self,
        rate_Bps: int,
        frame_bytes: int,
        quota: Quota,
        now_ns: int = 0,
        *,
        seed: object = 0,
        on_shed: Callable[[Outgoing], None] = lambda item: None,
    ) -> None:
        self.quota = quota
        self.queued, self.sent, self.lost = Counts(), Counts(), Counts()
        self.abandoned, self.purged = Counts(), Counts()
        self.purged_bytes_by_reason: Counter[tuple[str, str]] = Counter()  # (peer, reason)
        self._depth, self._seed, self._now_ns = 2 * frame_bytes, seed, now_ns
        self._bucket, self._line = TokenBucket(rate_Bps, self._depth, now_ns), _Line(rate_Bps)
        self._control: deque[Outgoing] = deque()
        self._held = HeldControl(quota, self._shed)
        self._on_shed = on_shed
        self._links: OrderedDict[str, _Link] = OrderedDict()  # the next turn first
        self._waiting = 0  # number of messages in their queues

    def forget_link(self, peer: str) -> None:
        """Forget the state and the counts of a link on which nothing waits."""
        self._links.pop(peer, None)
        for counts in (self.queued, self.sent, self.lost, self.abandoned, self.purged):
            counts.forget_peer(peer)
        for key in [key for key in self.purged_bytes_by_reason if key[0] == peer]:
            del self.purged_bytes_by_reason[key]

    # -- settings --------------------------------------------------------------------------------------
    def set_link(
        self,
        peer: str,
        rate_Bps: int | None = None,
        latency_ns: int = 0,
        jitter_ns: int = 0,
        loss: float = 0.0,
        outage: bool = False,
        *,
        beta_Bps: int = 0,
        now_ns: int | None = None,
    ) -> None:
        """Set the behaviour of a link from now on (fields of `LinkSettings`).

        Messages under way keep their arrival.

        Raises ValueError for a value out of range.
        """
        settings = LinkSettings(rate_Bps, latency_ns, jitter_ns, loss, outage, beta_Bps)
        self._link(peer).apply(settings, self._depth, self._time(now_ns))

    def hold(self, peer: str, held: bool) -> None:
        """Set whether data to a peer must wait, for instance for credit."""
        self._link(peer).held = held

    # -- queues ----------------------------------------------------------------------------------------
    def queue_control(self, item: Outgoing) -> None:
        """Queue a control message: it leaves at the next `pop`, if it fits in the quota of the round."""
        self.queued.count(item)
        self._control.append(item)

    def queue_data(self, item: Outgoing) -> None:
        """Queue a message behind all others on the same link.

        Also for a control message that must follow data (a manifest). It waits with the data, and its quota
        is that of control.
        """
        self.queued.count(item)
        self._link(item.peer).queue.append(item)
        self._waiting += 1

    # -- departures ------------------------------------------------------------------------------------
    def pop(self, now_ns: int) -> list[Departure]:
        """All messages that may leave now, in order."""
        return list(self.leaving(now_ns))

    def leaving(self, now_ns: int) -> Iterator[Departure]:
        """Like `pop`, one by one: a `hold` after one message applies to the next."""
        now = self._time(now_ns)
        self._control.extendleft(reversed(self._held.release()))
        for item in _drain(self._control):
            if self._held.must_wait(item, self._link(item.peer).cost(item.wire_bytes)):
                self._held.add(item)
            else:
                yield self._depart(now, item, urgent=True)
        while (turn := self._turn(now)) is not None and turn[0] <= now:
            peer = turn[1]
            item = self._links[peer].queue.popleft()
            self._links.move_to_end(peer)
            self._waiting -= 1
            yield self._depart(now, item, urgent=False)

    def next_ns(self, now_ns: int | None = None) -> int | None:
        """When `pop` returns something.

        None: not before a message is queued, a round starts or a link changes.
        """
        now = self._time(now_ns)
        if self._control or self._held.may_leave:
            return now
        turn = self._turn(now)
        return None if turn is None else turn[0]

    # -- removal ---------------------------------------------------------------------------------------
    def purge(self, selected: Callable[[Outgoing], bool], reason: str = "removed") -> Purged:
        """Remove the `selected` queued messages (deletion, a lost link).

        `selected` is called once for each.
        """
        gone = self._take_back(selected, self.purged)
        for peer, size in gone.bytes_by_peer.items():
            self.purged_bytes_by_reason[peer, reason] += size
        return gone

    def abandon_older(self, key: Hashable, version: int, peer: str | None = None) -> Purged:
        """A newer version replaces an update: remove queued fragments of older ones, to `peer` or to all
        peers.
        """

        def older(item: Outgoing) -> bool:
            return item.key == key and item.version < version and peer in (None, item.peer)

        link = None if peer is None else self._links.get(peer)
        if not any(map(older, self.pending() if link is None else link.queue)):  # the usual case
            return Purged()
        return self._take_back(older, self.abandoned)

    # -- counts ----------------------------------------------------------------------------------------
    def pending(self) -> Iterator[Outgoing]:
        """The queued messages."""
        yield from self._held.items
        yield from self._control
        for link in self._links.values():
            yield from link.queue

    @property
    def granted(self) -> int:
        """Bytes granted over all rounds so far."""
        return self.quota.granted_total

    @property
    def spent(self) -> int:
        """Bytes that have left, during and before all rounds so far."""
        return self.quota.spent_total

    @property
    def violations(self) -> int:
        """Rounds that spent more than their budget."""
        return self.quota.violations

    def _turn(self, now_ns: int) -> tuple[int, str] | None:
        """The link with the next turn, and when its first message may leave.

        It is the link that is ready first; among equals, the one that has waited longest. If the device's
        bucket cannot yet take its first message, no other link may overtake it; otherwise small messages
        would starve large ones.
        """
        if not self._waiting:
            return None
        left = self.quota.data_left()
        ready: tuple[int, str] | None = None
        for peer, link in self._links.items():
            if not link.queue or not self._allowed(link, left):
                continue
            at = link.earliest(now_ns)
            if ready is None or at < ready[0]:
                ready = (at, peer)
                if at <= now_ns:
                    break
        if ready is None:
            return None
        size = self._links[ready[1]].queue[0].wire_bytes
        return max(ready[0], self._bucket.earliest(now_ns, size)), ready[1]

    def _allowed(self, link: _Link, data_left: int) -> bool:
        head = link.queue[0]
        if link.settings.outage or link.held:
            return False
        cost = link.cost(head.wire_bytes)
        return self.quota.fits(cost, head.priority) if head.cause == "control" else cost <= data_left

    def take_back(self, item: Outgoing) -> None:
        """No link accepted a message that has left: it has cost nothing."""
        cost = self._link(item.peer).cost(item.wire_bytes)
        self.quota.spend(-cost, item.cause != "control", item.priority)

    def _shed(self, item: Outgoing) -> None:
        self.abandoned.count(item)
        self._on_shed(item)

    def _depart(self, now_ns: int, item: Outgoing, urgent: bool) -> Departure:
        link, size = self._link(item.peer), item.wire_bytes
        self.quota.spend(link.cost(size), item.cause != "control", item.priority)
        self._bucket.take(now_ns, size)
        depart = self._line.occupy(now_ns, size, urgent)
        if link.bucket is not None and link.line is not None:
            link.bucket.take(now_ns, size)
            depart = max(depart, link.line.occupy(now_ns, size, urgent))
        if not urgent and item.cause == "control":  # a manifest or a Bye must arrive after all sent messages
            link.draws[False].after(link.draws[True])
        arrive, lost = link.draws[urgent].arrival(depart, link.settings)
        self.sent.count(item)
        if lost:
            self.lost.count(item)
        what = (item.peer, item.cause, item.frames, size, item.payload_bytes, item.key, item.version)
        return Departure(
            *what, item.queued_round, item.priority, depart_ns=depart, arrive_ns=arrive, lost=lost
        )

    def _take_back(self, selected: Callable[[Outgoing], bool], counts: Counts) -> Purged:
        gone = Purged()
        for queue in (self._held.items, self._control, *(link.queue for link in self._links.values())):
            kept = []
            for item in _drain(queue):
                if selected(item):
                    gone.count(item)
                    counts.count(item)
                else:
                    kept.append(item)
            queue.extend(kept)
        self._waiting = sum(len(link.queue) for link in self._links.values())
        return gone

    def _link(self, peer: str) -> _Link:
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = _Link(self._seed, peer)
        return link

    def _time(self, now_ns: int | None) -> int:
        """The latest time seen, so that a clock that steps back does not speed up sending."""
        if now_ns is not None and now_ns > self._now_ns:
            self._now_ns = now_ns
        return self._now_ns


def _drain(queue: deque[Outgoing]) -> Iterator[Outgoing]:
    while queue:
        yield queue.popleft()
