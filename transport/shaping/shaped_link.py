"""One link of a shaper: its settings, its data queue, its rate, and the draws of its channel."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from coordinator_free.seeded_random import blake2b_128, generator
from transport.shaping.channel import cost_bytes
from transport.shaping.outgoing import Outgoing
from transport.shaping.token_bucket import SECOND_NS, TokenBucket


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


class Line:
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


class ChannelDraws:
    """Jitter and loss of one class on one link, drawn per message, so that other traffic does not change
    them.
    """

    def __init__(self, draw: np.random.Generator) -> None:
        self._draw = draw
        self._last_arrival_ns = 0

    def after(self, other: ChannelDraws) -> None:
        """Messages sent from now on arrive after all messages of the other class that are under way."""
        self._last_arrival_ns = max(self._last_arrival_ns, other._last_arrival_ns)

    def arrival(self, depart_ns: int, settings: LinkSettings) -> tuple[int, bool]:
        """The arrival time of a message and whether it is lost."""
        jitter = int(self._draw.integers(settings.jitter_ns, endpoint=True)) if settings.jitter_ns else 0
        lost = bool(settings.loss) and float(self._draw.random()) < settings.loss
        at = max(self._last_arrival_ns, depart_ns + settings.latency_ns + jitter)
        self._last_arrival_ns = at
        return at, lost


class Link:
    """One peer: its data queue and, if the link has its own rate, its bucket and line."""

    def __init__(self, seed: object, peer: str) -> None:
        self.queue: deque[Outgoing] = deque()
        self.settings = LinkSettings()
        self.held = False
        self.bucket: TokenBucket | None = None
        self.line: Line | None = None
        self.draws = {
            urgent: ChannelDraws(generator(repr((seed, peer, urgent)), digest=blake2b_128))
            for urgent in (False, True)
        }

    def apply(self, settings: LinkSettings, depth: int, now_ns: int) -> None:
        self.settings = settings
        if settings.rate_Bps is None:
            self.bucket = self.line = None
        elif self.bucket is None or self.line is None:
            self.bucket, self.line = TokenBucket(settings.rate_Bps, depth, now_ns), Line(settings.rate_Bps)
        else:
            self.bucket.set_rate(now_ns, settings.rate_Bps)
            self.line.rate_Bps = settings.rate_Bps

    def cost(self, size: int) -> int:
        """The cost of `size` bytes in the quota."""
        rate_Bps = self.settings.rate_Bps
        return size if rate_Bps is None else cost_bytes(size, rate_Bps, self.settings.beta_Bps)

    def earliest(self, now_ns: int) -> int:
        return self.bucket.earliest(now_ns, self.queue[0].wire_bytes) if self.bucket else now_ns
