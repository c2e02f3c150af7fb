"""The timeline of a run: what each device did when, from the lines of its rounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

Record = dict[str, Any]
SHORTEST_S = 1e-4  # shorter spans cannot be seen


class Span(NamedTuple):
    """A time in which a device did one thing. Seconds are of the run's clock."""

    device: str
    kind: str  # mix | train | wait | send | stalled
    start_s: float
    end_s: float
    round: int


def of_round(device: str, line: Record, real_time: bool) -> Iterator[Span]:
    """The spans of one closed round, and of the messages that arrived in it (by their senders).

    `train_s` lasts until the local steps are done. The learner first does the work that was queued before:
    it mixes, deletes and saves. In real time, `compute_s` is the part of the local steps. In virtual time
    only local steps take time.
    """
    round_, start_s, end_s = int(line["round"]), float(line["t0_s"]), float(line["t1_s"])
    trained_s = min(end_s, start_s + float(line["train_s"]))
    mixed_s = start_s
    if real_time and "compute_s" in line:
        mixed_s = max(start_s, trained_s - float(line["compute_s"]))
    for kind, first_s, last_s in (
        ("mix", start_s, mixed_s),
        ("train", mixed_s, trained_s),
        ("wait", trained_s, end_s),
    ):
        if last_s - first_s > SHORTEST_S:
            yield Span(device, kind, first_s, last_s, round_)
    for source, burst in line.get("arrivals", {}).items():
        departed = burst["depart_s"]
        yield Span(source, "send", float(departed[0]), float(departed[1]), round_)
