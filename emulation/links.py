"""The cumulative books of a device's links, which start at zero again when the device is started again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from emulation.records import Record

Books = Mapping[str, Record]  # peer -> counters, as in metrics.jsonl


def final_links(metrics: Iterable[Record], events: Iterable[Record]) -> dict[str, Record]:
    """A device's books at its end, over all its lives; latencies are those of its last life."""
    states = [(float(line["t1_s"]), line["links"]) for line in metrics]
    states += [(float(e["t_s"]), e["links"]) for e in events if e["event"] == "finished" and "links" in e]
    past: dict[str, Record] = {}
    last: Books = {}
    for _, books in sorted(states, key=lambda state: state[0]):
        if total_sent(books) < total_sent(last):
            past = _added(past, last)
        last = books
    return _added(past, last)


def sent_by_round(metrics: Iterable[Record]) -> dict[int, int]:
    """Bytes that a device sent from the end of its round before until the end of each round."""
    sent, before = {}, 0
    for line in metrics:
        now = total_sent(line["links"])
        sent[int(line["round"])] = now - before if now >= before else now
        before = now
    return sent


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
