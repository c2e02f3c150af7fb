"""Whether an injected departure had an effect (method 9), and whether others detected a crash.

After its last round a device only ends, whatever signal it gets. A leave then is the end of the device, and
its block stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

DEPARTURES = ("leave", "retire")
SAME_S = 0.01  # the launcher and the device round their times


def took_effect(event: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> bool:
    """Whether an injected event happened. `records`: events.jsonl of its device.

    A departure did not if the device finished after it and never recorded that it was leaving. Without the
    record of its end, for instance after a crash, it counts as done.
    """
    if event["kind"] not in DEPARTURES:
        return True
    after = [r["event"] for r in records if float(r["t_s"]) >= float(event["t_s"]) - SAME_S]
    return "leaving" in after or "finished" not in after


def seen_as_crashed(device: str, last_s: float, events: Iterable[Mapping[str, Any]]) -> bool:
    """Whether another device detected the crash of a device after its last record. Else it may be alive.

    `last_s`: time of that record. `events`: events.jsonl of other devices.
    """
    return any(
        e["event"] == "peer_gone"
        and (e.get("peer"), e.get("kind")) == (device, "crash")
        and float(e["t_s"]) >= last_s
        for e in events
    )
