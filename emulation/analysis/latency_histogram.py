"""Latency histograms of links, as small bars. Their buckets are those of transport/shaping/accounting.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from transport.shaping.accounting import BOUNDS_NS, PER_DECADE

FIRST_S = BOUNDS_NS[0] / 1e9  # upper bound of the first bucket
WIDE = PER_DECADE // 4  # buckets of one bar: a quarter of a decade
BARS = "▁▂▃▄▅▆▇█"
Counts = Mapping[str, int]  # bucket -> messages


def spread(links: Iterable[Counts]) -> range:
    """The bars that are needed to show all of these links."""
    bars = [int(bucket) // WIDE for counts in links for bucket in counts]
    return range(min(bars), max(bars) + 1) if bars else range(0)


def drawn(counts: Counts, bars: range) -> str:
    """A bar for each quarter of a decade, the highest as high as a line; a dot where there is nothing."""
    heights = Counter[int]()
    for bucket, count in counts.items():
        heights[int(bucket) // WIDE] += count
    most = max(heights.values(), default=1)
    return "".join(BARS[(len(BARS) - 1) * heights[b] // most] if heights[b] else "·" for b in bars)


def seconds(bars: range) -> tuple[float, float]:
    """Where the first bar begins and the last one ends."""
    return FIRST_S * 10 ** ((bars.start - 1 / WIDE) / 4), FIRST_S * 10 ** ((bars.stop - 1 / WIDE) / 4)
