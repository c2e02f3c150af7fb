"""Lives of a device: each process of a device is one life, with a number in each of its records.

Two lives append to the same files. Their records are told apart by the number, never by time. Records of
older versions have no number. They get one from the `started` records before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emulation.scenario.events import ARRIVALS

Record = dict[str, Any]


def with_lives(metrics: Sequence[Record], events: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The records of a device, each with its `life`, by time and, at equal times, by life.

    Records of one life at one time keep the order of the file.
    """
    starts_s = [float(e["t_s"]) for e in events if e["event"] == "started" and "life" not in e]
    return _numbered(metrics, "t1_s", starts_s), _numbered(events, "t_s", starts_s)


def _numbered(lines: Sequence[Record], time: str, starts_s: list[float]) -> list[Record]:
    numbered = [
        line if "life" in line else {"life": _life_at(line[time], starts_s), **line} for line in lines
    ]
    return sorted(numbered, key=lambda line: (float(line[time]), int(line["life"])))


def _life_at(t_s: Any, starts_s: list[float]) -> int:
    return max(0, sum(start_s <= float(t_s) for start_s in starts_s) - 1)


def event_order(event: Record) -> tuple[float, int, int, bool]:
    """The key by which events of a run are sorted: time, round, life, kind.

    A life begins with its arrival, before its other events. Events of older versions have no life: then a
    departure comes before an arrival, since only a device that has gone can arrive.
    """
    arrives = event["kind"] in ARRIVALS
    life = event.get("life")
    at = float(event["t_s"]), int(event["round"])
    return (*at, 0, arrives) if life is None else (*at, int(life), not arrives)
