"""Latency histograms of links as text. The buckets are those of transport/shaping/accounting.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from transport.shaping.accounting import BOUNDS_NS, PER_DECADE

FIRST_S = BOUNDS_NS[0] / 1e9  # upper bound of the first bucket
PER_BAR = PER_DECADE // 4  # buckets in one bar: a quarter of a decade
BARS = "▁▂▃▄▅▆▇█"
Counts = Mapping[str, int]  # bucket -> messages


def bar_range(links: Iterable[Counts]) -> range:
    """The indices of the bars that show the latencies of all these links."""
    bars = [int(bucket) // PER_BAR for counts in links for bucket in counts]
    return range(min(bars), max(bars) + 1) if bars else range(0)


def draw_bars(counts: Counts, bars: range) -> str:
    """One character for each bar. The largest count has the highest one, and a zero count has a dot."""
    heights = Counter[int]()
    for bucket, count in counts.items():
        heights[int(bucket) // PER_BAR] += count
    most = max(heights.values(), default=1)
    return "".join(BARS[(len(BARS) - 1) * heights[b] // most] if heights[b] else "·" for b in bars)


def bounds_s(bars: range) -> tuple[float, float]:
    """The lower bound of the first bar and the upper bound of the last one, in seconds."""
    return FIRST_S * 10 ** ((bars.start - 1 / PER_BAR) / 4), FIRST_S * 10 ** ((bars.stop - 1 / PER_BAR) / 4)
