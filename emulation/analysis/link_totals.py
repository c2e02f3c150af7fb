"""Totals of the link counters of a device. The counters restart at zero with each process of the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from emulation.analysis.records import Record

LinkCounters = Mapping[str, Record]  # peer -> counters, as in metrics.jsonl


def final_links(metrics: Iterable[Record], events: Iterable[Record]) -> dict[str, Record]:
    """Peer -> counters at the end of a device, summed over all its processes.

    Latency quantiles are those of the last process. Latency counts are summed over the processes that ended
    normally.
    """
    events = list(events)
    states = [(float(line["t1_s"]), line["links"]) for line in metrics]
    states += [(float(e["t_s"]), e["links"]) for e in events if e["event"] == "finished" and "links" in e]
    total: dict[str, Record] = {}
    last: dict[int, LinkCounters] = {}
    for t_s, counters in sorted(states, key=lambda state: state[0]):
        last[process_number(events, t_s)] = counters
    for counters in last.values():
        total = _add(total, counters)
    return total


def sent_by_round(metrics: Iterable[Record], events: Iterable[Record]) -> dict[int, int]:
    """Round -> bytes that a device sent between the end of its previous round and the end of this round."""
    events = list(events)
    sent: dict[int, int] = {}
    before, previous = 0, -1
    for line in metrics:
        now, current = total_sent(line["links"]), process_number(events, float(line["t1_s"]))
        sent[int(line["round"])] = now if current != previous else now - before
        before, previous = now, current
    return sent


def process_number(events: Iterable[Record], t_s: float) -> int:
    """The number of the process of a device at a time: its `started` records up to then."""
    return sum(e["event"] == "started" and float(e["t_s"]) <= t_s for e in events)


def total_sent(counters: LinkCounters) -> int:
    """Bytes sent to all peers."""
    return sum(int(link.get("sent_bytes", 0)) for link in counters.values())


def _add(a: LinkCounters, b: LinkCounters) -> dict[str, Record]:
    return {peer: _sum(a.get(peer, {}), b.get(peer, {})) for peer in sorted({*a, *b})}


def _sum(a: Record, b: Record) -> Record:
    return {key: _plus(a.get(key), b.get(key), key) for key in {**a, **b}}


def _plus(a: Any, b: Any, key: str) -> Any:
    if a is None or b is None or key == "latency_s":
        return a if b is None else b
    return _sum(a, b) if isinstance(a, dict) else a + b
