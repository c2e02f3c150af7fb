"""Totals of the link counters of a device. The counters restart at zero with each life of the device.

Records are those of `RunRecords`: each has its `life` (lives.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from emulation.analysis.records import Record

LinkCounters = Mapping[str, Record]  # peer -> counters, as in metrics.jsonl


def final_links(metrics: Iterable[Record], events: Iterable[Record]) -> dict[str, Record]:
    """Peer -> counters at the end of a device, summed over all its lives.

    Latency quantiles and clock differences are those of the last life. Latency counts are summed over the
    lives that ended normally.
    """
    last: dict[int, LinkCounters] = {int(line.get("life", 0)): line["links"] for line in metrics}
    # A life writes its totals last, whatever the times of its rounds.
    last |= {int(e["life"]): e["links"] for e in events if e["event"] == "finished" and "links" in e}
    total: dict[str, Record] = {}
    for _, counters in sorted(last.items()):
        total = _add(total, counters)
    return total


def sent_by_round(metrics: Iterable[Record]) -> dict[int, int]:
    """Round -> bytes that a device sent between the end of its previous round and the end of this round.

    Two lives may have closed the same round: both count.
    """
    sent, before = Counter[int](), Counter[int]()
    for line in metrics:
        now, life = total_sent(line["links"]), int(line.get("life", 0))
        sent[int(line["round"])] += now - before[life]
        before[life] = now
    return dict(sent)


def total_sent(counters: LinkCounters) -> int:
    """Bytes sent to all peers."""
    return sum(int(link.get("sent_bytes", 0)) for link in counters.values())


def _add(a: LinkCounters, b: LinkCounters) -> dict[str, Record]:
    return {peer: _sum(a.get(peer, {}), b.get(peer, {})) for peer in sorted({*a, *b})}


def _sum(a: Record, b: Record) -> Record:
    return {key: _plus(a.get(key), b.get(key), key) for key in {**a, **b}}


def _plus(a: Any, b: Any, key: str) -> Any:
    if a is None or b is None or key in ("latency_s", "clock_s"):
        return a if b is None else b
    return _sum(a, b) if isinstance(a, dict) else a + b
