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
for each peer and cause: queued = sent + shed + purged + pending, and sent includes lost.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from transport.shaping.accounting import CAUSES
from transport.shaping.held_control import HeldControl
from transport.shaping.outgoing import Departure, Outgoing
from transport.shaping.round_budget import Quota
from transport.shaping.shaped_link import Line, Link, LinkSettings
from transport.shaping.token_bucket import TokenBucket

Account = tuple[str, str]  # peer, cause


@dataclass(slots=True)
class Purged:
    """What was removed from the queues before it was sent. messages: those that were removed whole."""

    messages: int = 0
    bytes: int = 0
    bytes_by_peer: Counter[str] = field(default_factory=Counter)

    def count(self, item: Outgoing, rest: Outgoing | None) -> None:
        """Count what was removed of a message of which `rest` stays."""
        size = item.wire_bytes - (0 if rest is None else rest.wire_bytes)
        self.messages += rest is None
        self.bytes += size
        self.bytes_by_peer[item.peer] += size


class Counts:
    """Messages and wire bytes by peer and cause."""

    def __init__(self) -> None:
        self.messages: Counter[Account] = Counter()
        self.bytes: Counter[Account] = Counter()

    def count(self, item: Outgoing, rest: Outgoing | None = None) -> None:
        """Count a message, or what was removed of it if `rest` of it stays."""
        self.messages[item.peer, item.cause] += rest is None
        self.bytes[item.peer, item.cause] += item.wire_bytes - (0 if rest is None else rest.wire_bytes)

    def forget_peer(self, peer: str) -> None:
        for cause in CAUSES:
            del self.messages[peer, cause], self.bytes[peer, cause]


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
        self.shed, self.purged = Counts(), Counts()
        self.purged_bytes_by_reason: Counter[tuple[str, str]] = Counter()  # (peer, reason)
        self._depth, self._seed, self._now_ns = 2 * frame_bytes, seed, now_ns
        self._bucket, self._line = TokenBucket(rate_Bps, self._depth, now_ns), Line(rate_Bps)
        self._control: deque[Outgoing] = deque()
        self._held = HeldControl(quota, self._shed)
        self._on_shed = on_shed
        self._links: OrderedDict[str, Link] = OrderedDict()  # the next turn first
        self._waiting = 0  # number of messages in their queues

    def forget_link(self, peer: str) -> None:
        """Forget the state and the counts of a link on which nothing waits."""
        self._links.pop(peer, None)
        for counts in (self.queued, self.sent, self.lost, self.shed, self.purged):
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
    def purge(
        self, rest: Callable[[Outgoing], Outgoing | None], reason: str = "removed", peer: str | None = None
    ) -> Purged:
        """Remove queued messages, or a part of them (deletion, newer versions, a lost link).

        `rest` is called once for each message. It returns what stays of it: the message itself, a smaller one
        for the same peer and cause, or None. `peer`: only data on the link to it; other queues are not read.
        """
        gone = Purged()
        data = [link.queue for name, link in self._links.items() if peer in (None, name)]
        for queue in data if peer is not None else (self._held.items, self._control, *data):
            kept = []
            for item in _drain(queue):
                left = rest(item)
                if left is not None:
                    kept.append(left)
                if left is not item:
                    gone.count(item, left)
                    self.purged.count(item, left)
            queue.extend(kept)
        for peer, size in gone.bytes_by_peer.items():
            self.purged_bytes_by_reason[peer, reason] += size
        self._waiting = sum(len(link.queue) for link in self._links.values())
        return gone

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

    def _allowed(self, link: Link, data_left: int) -> bool:
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
        self.shed.count(item)
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
        what = (item.peer, item.cause, item.frames, size, item.payload_bytes, item.content, item.key)
        return Departure(
            *what, item.queued_round, item.priority, depart_ns=depart, arrive_ns=arrive, lost=lost
        )

    def _link(self, peer: str) -> Link:
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = Link(self._seed, peer)
        return link

    def _time(self, now_ns: int | None) -> int:
        """The latest time seen, so that a clock that steps back does not speed up sending."""
        if now_ns is not None and now_ns > self._now_ns:
            self._now_ns = now_ns
        return self._now_ns


def _drain(queue: deque[Outgoing]) -> Iterator[Outgoing]:
    while queue:
        yield queue.popleft()
