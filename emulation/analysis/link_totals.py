"""The cumulative books of a device's links, which start at zero again when the device is started again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from emulation.analysis.records import Record

Books = Mapping[str, Record]  # peer -> counters, as in metrics.jsonl


def final_links(metrics: Iterable[Record], events: Iterable[Record]) -> dict[str, Record]:
    """A device's books at its end, over all its lives; quantiles of latencies are its last life's.

    Counts of latencies are those of all lives that ended well.
    """
    events = list(events)
    states = [(float(line["t1_s"]), line["links"]) for line in metrics]
    states += [(float(e["t_s"]), e["links"]) for e in events if e["event"] == "finished" and "links" in e]
    total: dict[str, Record] = {}
    lives: dict[int, Books] = {}
    for t_s, books in sorted(states, key=lambda state: state[0]):
        lives[life(events, t_s)] = books
    for books in lives.values():
        total = _added(total, books)
    return total


def sent_by_round(metrics: Iterable[Record], events: Iterable[Record]) -> dict[int, int]:
    """Bytes that a device sent from the end of its round before until the end of each round."""
    events = list(events)
    sent: dict[int, int] = {}
    before, previous = 0, -1
    for line in metrics:
        now, current = total_sent(line["links"]), life(events, float(line["t1_s"]))
        sent[int(line["round"])] = now if current != previous else now - before
        before, previous = now, current
    return sent


def life(events: Iterable[Record], t_s: float) -> int:
    """Which start of the device a moment belongs to: the number of its `started` records up to then."""
    return sum(e["event"] == "started" and float(e["t_s"]) <= t_s for e in events)


def total_sent(books: Books) -> int:
    """Bytes to all peers."""
    return sum(int(link.get("sent_bytes", 0)) for link in books.values())


def _added(a: Books, b: Books) -> dict[str, Record]:
    return {peer: _sum(a.get(peer, {}), b.get(peer, {})) for peer in sorted({*a, *b})}


def _sum(a: Record, b: Record) -> Record:
    return {key: _plus(a.get(key), b.get(key), key) for key in {**a, **b}}


def _plus(a: Any, b: Any, key: str) -> Any:
    if a is None or b is None or key == "latency_s":
        return a if b is None else b
    return _sum(a, b) if isinstance(a, dict) else a + b
