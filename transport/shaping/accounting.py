"""Bytes and latencies per link, counted where they occur. Sans-I/O.

A message that arrived counts either as received or, if it was refused, as dropped under a reason. No count is
the difference of two others. So on a link between live devices sent = received + dropped.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

CAUSES = ("train", "correction", "transfer", "control")
_NO_BYTES = dict.fromkeys(CAUSES, 0)
MAX_PEERS = 1024  # accounts of single names; members come and go, so those used last are kept
OTHERS = "(others)"  # the account of unknown sources and of the names that were used longest ago

PERCENTS = (50, 95, 99)
PER_DECADE = 32  # a bucket is 10^(1/32) = 7.5 % wide
# upper bounds in ns, 1 us to 1000 s; one more bucket holds longer latencies
BOUNDS_NS = tuple(round(1000 * 10 ** (i / PER_DECADE)) for i in range(9 * PER_DECADE + 1))


class LatencyHistogram:
    """Counts of latencies in log-spaced buckets.

    Quantiles are exact within 7.5 % and within the observed range.
    """

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._min_ns = self._max_ns = 0
        self._found: tuple[int, dict[str, float]] = (0, {})  # cached quantiles, and the number of latencies
        self.negative = 0  # negative latencies, from a wrong clock or sender; in no quantile
        self.too_long = 0  # latencies that the receiver does not believe; in no quantile

    def add(self, latency_ns: int, longest_ns: int | None = None) -> None:
        """Count a latency in ns. `longest_ns`: the longest one that is possible; None: unknown."""
        if latency_ns < 0:
            self.negative += 1
            return
        if longest_ns is not None and latency_ns > longest_ns:
            self.too_long += 1
            return
        first = not self._counts
        self._min_ns = latency_ns if first else min(self._min_ns, latency_ns)
        self._max_ns = max(self._max_ns, latency_ns)
        self._counts[bisect_left(BOUNDS_NS, latency_ns)] += 1

    def merge(self, other: LatencyHistogram) -> None:
        """Add the latencies of another histogram."""
        self.negative += other.negative
        self.too_long += other.too_long
        if other._counts:
            self._min_ns = min(self._min_ns, other._min_ns) if self._counts else other._min_ns
            self._max_ns = max(self._max_ns, other._max_ns)
            self._counts.update(other._counts)

    def __len__(self) -> int:
        return self._counts.total()

    def quantile_ns(self, percent: int) -> int:
        """The upper bound of the bucket of rank ceil(percent/100 * n), in ns. Raises ValueError if empty."""
        if not self._counts:
            raise ValueError("no latencies yet")
        return self._quantiles_ns((percent,))[0]

    def _quantiles_ns(self, percents: tuple[int, ...]) -> list[int]:
        """For ascending percents, in one pass, because a device does this for each link in each round."""
        buckets = sorted(self._counts)
        seen = list(accumulate(map(self._counts.__getitem__, buckets)))
        ranks = (max(1, -(-percent * seen[-1] // 100)) for percent in percents)
        at = (buckets[bisect_left(seen, rank)] for rank in ranks)
        bounds = (BOUNDS_NS[b] if b < len(BOUNDS_NS) else self._max_ns for b in at)
        return [max(self._min_ns, min(bound, self._max_ns)) for bound in bounds]

    def to_dict(self) -> dict[str, int]:
        """Messages by bucket, in order. Bucket i ends at 10^(i/32) us (`BOUNDS_NS`)."""
        return {str(bucket): count for bucket, count in sorted(self._counts.items())}

    def quantiles_s(self) -> dict[str, float] | None:
        """p50, p95 and p99 in seconds; None if empty."""
        if not self._counts:
            return None
        count = len(self)
        if self._found[0] != count:
            found = zip(PERCENTS, self._quantiles_ns(PERCENTS), strict=True)
            self._found = count, {f"p{percent}": ns / 1e9 for percent, ns in found}
        return dict(self._found[1])


class LinkAccount:
    """The traffic of one device with one peer. Bytes are wire bytes unless the name says otherwise."""

    def __init__(self) -> None:
        self.sent_messages = self.sent_bytes = self.received_messages = self.received_bytes = 0
        self.payload_bytes = 0  # tensor bytes of the sent bytes
        self.header_bytes: int | None = 0  # header bytes of the sent bytes; None if unknown for a message
        self.sent_by_cause: Counter[str] = Counter()
        self.dropped_messages: Counter[str] = Counter()
        self.dropped_bytes: Counter[str] = Counter()
        self.abandoned_bytes: Counter[str] = Counter()
        self.lost_bytes = 0  # those of the sent bytes that the emulated channel lost
        self.latency = LatencyHistogram()
        # own clock less the peer's, and the bound of the error; None: not measured, or on one host
        self.clock_s: dict[str, float] | None = None

    def sent(self, cause: str, wire_bytes: int, payload_bytes: int, header_bytes: int | None = None) -> None:
        """Count a message that a link accepted.

        Without `header_bytes` the split of the rest is unknown from now on.
        """
        self.sent_messages += 1
        self.sent_bytes += wire_bytes
        self.payload_bytes += payload_bytes
        unknown = self.header_bytes is None or header_bytes is None
        self.header_bytes = None if unknown else (self.header_bytes or 0) + (header_bytes or 0)
        self.sent_by_cause[cause] += wire_bytes

    def add(self, other: LinkAccount) -> None:
        """Add all counts of another account."""
        self.sent_messages += other.sent_messages
        self.sent_bytes += other.sent_bytes
        self.payload_bytes += other.payload_bytes
        unknown = self.header_bytes is None or other.header_bytes is None
        self.header_bytes = None if unknown else (self.header_bytes or 0) + (other.header_bytes or 0)
        self.sent_by_cause.update(other.sent_by_cause)
        self.abandoned_bytes.update(other.abandoned_bytes)
        self.lost_bytes += other.lost_bytes
        self.received_messages += other.received_messages
        self.received_bytes += other.received_bytes
        self.dropped_messages.update(other.dropped_messages)
        self.dropped_bytes.update(other.dropped_bytes)
        self.latency.merge(other.latency)
        self.clock_s = self.clock_s or other.clock_s

    def received(self, wire_bytes: int, latency_ns: int | None, longest_ns: int | None = None) -> None:
        """Count an accepted message. `latency_ns`: arrival minus departure, None if unknown.

        `longest_ns`: the longest latency that is possible, by what the receiver saw.
        """
        self.received_messages += 1
        self.received_bytes += wire_bytes
        if latency_ns is not None:
            self.latency.add(latency_ns, longest_ns)

    def dropped(self, reason: str, wire_bytes: int) -> None:
        """Count a message that arrived and was refused (malformed, stale, late, duplicate, loss, ...)."""
        self.dropped_messages[reason] += 1
        self.dropped_bytes[reason] += wire_bytes

    def refuse_received(self, reason: str, wire_bytes: int) -> None:
        """A message that was counted as received is refused after all: no answer to it can be sent."""
        self.received_messages -= 1
        self.received_bytes -= wire_bytes
        self.dropped(reason, wire_bytes)

    def lost(self, wire_bytes: int) -> None:
        """Count a sent message that the emulated channel lost."""
        self.lost_bytes += wire_bytes

    def abandoned(self, reason: str, wire_bytes: int) -> None:
        """Count bytes that never reached a link: removed from the queue (purged, ...) or refused
        (no_route).
        """
        self.abandoned_bytes[reason] += wire_bytes

    def frame_bytes(self) -> int | None:
        """The sent bytes that are neither payload nor header: framing and encryption of the transport."""
        return None if self.header_bytes is None else self.sent_bytes - self.payload_bytes - self.header_bytes

    def to_dict(self) -> dict[str, Any]:
        """The form of metrics.jsonl (docs/records.md). `latency_s`: of received messages."""
        return {
            "sent_messages": self.sent_messages,
            "sent_bytes": self.sent_bytes,
            "received_messages": self.received_messages,
            "received_bytes": self.received_bytes,
            "payload_bytes": self.payload_bytes,
            "header_bytes": self.header_bytes,
            "frame_bytes": self.frame_bytes(),
            "bytes_by_cause": {**_NO_BYTES, **self.sent_by_cause},
            "dropped_messages": dict(self.dropped_messages),
            "dropped_bytes": dict(self.dropped_bytes),
            "abandoned_bytes": dict(self.abandoned_bytes),
            "lost_bytes": self.lost_bytes,
            "latency_s": self.latency.quantiles_s(),
            "impossible_latencies": self.latency.negative + self.latency.too_long,
            **({} if self.clock_s is None else {"clock_s": self.clock_s}),
        }


class Accounts:
    """The accounts of one device, by peer."""

    def __init__(self) -> None:
        self._links: dict[str, LinkAccount] = {}

    def link(self, peer: str) -> LinkAccount:
        """The account of a peer to which this device has a link, or of a member.

        Above `MAX_PEERS` names, OTHERS gets the counts of the one that was used longest ago.
        """
        account = self._links.pop(peer, None)
        if account is None:
            account = LinkAccount()
            if peer != OTHERS and len(self._links) - (OTHERS in self._links) >= MAX_PEERS:
                self._fold_oldest()
        self._links[peer] = account  # the last one is the one that was used last
        return account

    def source(self, name: str, known: bool) -> LinkAccount:
        """The account for a message that arrived. `known`: whether the source is a peer or a member.

        Anybody can name any source. So an unknown one without an account counts under OTHERS.
        """
        return self.link(name if known or name in self._links else OTHERS)

    def _fold_oldest(self) -> None:
        oldest = next(name for name in self._links if name != OTHERS)
        account = self._links.pop(oldest)
        self.link(OTHERS).add(account)

    def rename(self, alias: str, peer: str) -> None:
        """Move what was sent to an address, before its device was known, to the account of that device."""
        early = self._links.pop(alias, None)
        if early is not None:
            self.link(peer).add(early)

    def to_dict(self, histograms: bool = False) -> dict[str, dict[str, Any]]:
        """With `histograms`, each account also has `latency_counts` (LatencyHistogram.to_dict)."""
        found = {peer: account.to_dict() for peer, account in sorted(self._links.items())}
        if histograms:
            for peer, account in found.items():
                account["latency_counts"] = self._links[peer].latency.to_dict()
        return found


def open_bytes(sender: Mapping[str, Any], receiver: Mapping[str, Any]) -> int:
    """Bytes of one direction that are counted neither as arrived nor as lost: in flight, or lost with a
    process.

    `sender`: `to_dict()` of the sending end for that peer; `receiver`: of the other end, {} if it wrote
    nothing. 0 on an idle link between live devices. Only a check of the accounts.
    """
    arrived = receiver.get("received_bytes", 0) + sum(receiver.get("dropped_bytes", {}).values())
    return int(sender.get("sent_bytes", 0) - sender.get("lost_bytes", 0) - arrived)
