"""When the data of a round departed and arrived, by the device that sent it: for trace.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Burst:
    """The messages of one device between two ends of a round. The sender names the departures."""

    first_depart_ns: int
    last_depart_ns: int
    first_arrive_ns: int
    last_arrive_ns: int
    wire_bytes: int = 0
    messages: int = 0


class Arrivals:
    """Accepted updates and manifests since the last `take`."""

    def __init__(self) -> None:
        self._bursts: dict[str, Burst] = {}

    def add(self, source: str, depart_ns: int, arrive_ns: int, wire_bytes: int) -> None:
        """Count a message. A departure after the arrival counts as at the arrival: the sender names it."""
        depart_ns = min(depart_ns, arrive_ns)
        burst = self._bursts.setdefault(source, Burst(depart_ns, depart_ns, arrive_ns, arrive_ns))
        burst.first_depart_ns = min(burst.first_depart_ns, depart_ns)
        burst.last_depart_ns = max(burst.last_depart_ns, depart_ns)
        burst.last_arrive_ns = max(burst.last_arrive_ns, arrive_ns)
        burst.wire_bytes += wire_bytes
        burst.messages += 1

    def take(self, seconds: Callable[[int], float]) -> dict[str, dict[str, object]]:
        """The bursts by source, in the form of metrics.jsonl; then the next round begins."""
        bursts, self._bursts = self._bursts, {}
        return {
            source: {
                "depart_s": [seconds(burst.first_depart_ns), seconds(burst.last_depart_ns)],
                "arrive_s": [seconds(burst.first_arrive_ns), seconds(burst.last_arrive_ns)],
                "bytes": burst.wire_bytes,
                "messages": burst.messages,
            }
            for source, burst in sorted(bursts.items())
        }
