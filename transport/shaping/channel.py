"""The behaviour of links, round by round: the interface of every radio model and trace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class LinkQuality:
    """One direction of one link in one round. Raises ValueError for a value out of range.

    `rate_Bps`: bytes per second. `jitter_ns`: added to the latency, uniform in [0, jitter_ns]. `loss`:
    probability per message. `outage`: data waits.
    """

    rate_Bps: int
    latency_ns: int
    jitter_ns: int = 0
    loss: float = 0.0
    outage: bool = False

    def __post_init__(self) -> None:
        if self.rate_Bps < 1 or self.latency_ns < 1 or self.jitter_ns < 0 or not 0 <= self.loss <= 1:
            raise ValueError(f"invalid link quality: {self}")

    def at_rate(self, rate_Bps: float, outage_bytes: int, tau_max_s: float) -> LinkQuality:
        """The same link at R bytes/s, rounded down; in outage if b/R > tau_max (method 8).

        In an outage only control messages leave, at b/tau_max, the smallest rate of a link without outage. At
        R a heartbeat could take minutes.
        """
        whole, least = int(rate_Bps), math.ceil(outage_bytes / tau_max_s)
        return replace(self, rate_Bps=max(whole, least), outage=whole < least)


class Channel(Protocol):
    """All links of a run. Picklable; equal on every device, for any order of calls."""

    @property
    def min_latency_ns(self) -> int:
        """The smallest latency of any link in any round, > 0: the lookahead of virtual time."""

    def link(self, round_: int, src: str, dst: str, live: Sequence[str]) -> LinkQuality:
        """The quality of src -> dst in a round in which all `live` devices transmit.

        Times before round 0 count as round 0.

        A pure function of the configuration, the seed and the arguments. The order of `live` does not matter.
        """


@dataclass(frozen=True, slots=True)
class FixedChannel:
    """The same quality for all links in all rounds."""

    quality: LinkQuality

    @property
    def min_latency_ns(self) -> int:
        return self.quality.latency_ns

    def link(self, round_: int, src: str, dst: str, live: Sequence[str]) -> LinkQuality:
        return self.quality


def cost_bytes(size_bytes: int, rate_Bps: int, beta_Bps: int) -> int:
    """c = b + beta b / R in bytes, rounded up (method 8).

    `beta_Bps`: the cost of one second of transmission, in bytes, in addition to the payload.
    """
    return size_bytes - (-beta_Bps * size_bytes // rate_Bps)
