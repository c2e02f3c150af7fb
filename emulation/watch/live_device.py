"""The present state of one device, from its own records and from the records of others on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]

STARTING, MEETING, TRAINING, FINISHED = "starting", "meeting", "training", "finished"
SUSPECTED, STALLED = "suspected", "stalled"
LEFT, RETIRED, CRASHED, FAILED = "left", "retired", "crashed", "failed"
ALIVE = (STARTING, MEETING, TRAINING, FINISHED, SUSPECTED, STALLED)
PACE_ROUNDS = 10  # the pace of a device is that of its last rounds


@dataclass
class LiveDevice:
    """What the files of a run say of one device. Seconds are of the run's clock, from the run's start.

    Link counters restart with each life, so they are kept by life.
    """

    id: str
    initial: bool  # it started with the run; others have joined
    life: int = 0
    state: str = STARTING
    since_s: float = 0.0  # start of the state
    suspected_by: set[str] = field(default_factory=set)
    slot: int | None = None
    round: int | None = None  # the last closed round
    phase: str = ""
    loss: float | None = None
    neighbours: tuple[str, ...] = ()  # in the learning graph of the last closed round
    seen_s: float = 0.0  # time of the newest record
    ends_s: list[float] = field(default_factory=list)  # ends of the last closed rounds of this life
    granted_bytes: int = 0
    spent_bytes: dict[int, int] = field(default_factory=dict)  # by life
    links: dict[int, dict[str, tuple[int, float | None]]] = field(default_factory=dict)
    """By life and peer: bytes sent to the peer; median latency in s of messages from the peer."""

    @property
    def alive(self) -> bool:
        """Whether the device takes part, as far as the records say."""
        return self.state in ALIVE

    def enter(self, state: str, t_s: float) -> None:
        """Change the state at `t_s`."""
        if state != self.state:
            self.state, self.since_s = state, t_s

    def begin_life(self, life: int, t_s: float) -> None:
        """A process of the device has started."""
        self.life = max(life, self.life)
        self.ends_s, self.suspected_by = [], set()
        self.enter(MEETING, t_s)
        self.see(t_s)

    def see(self, t_s: float) -> None:
        """The device wrote a record at `t_s`: it was not silent then."""
        self.seen_s = max(self.seen_s, t_s)
        resumes = self.state in (SUSPECTED, STALLED, CRASHED) and t_s > self.since_s
        if resumes and self.round is not None:
            self.suspected_by = set()
            self.enter(TRAINING, t_s)

    def suspect(self, by: str, t_s: float) -> None:
        """Another device suspects this one at `t_s`. A newer record of this device outweighs it."""
        if t_s >= self.seen_s and self.state in (MEETING, TRAINING, SUSPECTED, STALLED):
            self.suspected_by.add(by)
            if self.state != STALLED:
                self.enter(SUSPECTED, t_s)

    def close_round(self, line: Record) -> None:
        """Take in a line of metrics.jsonl."""
        life = int(line.get("life", self.life))
        self.round, self.phase = int(line["round"]), str(line["phase"])
        self.loss = None if line["loss"] is None else float(line["loss"])
        self.neighbours = tuple(peer for peer, weight in line.get("weights", {}).items() if weight > 0)
        self.ends_s = [*self.ends_s, float(line["t1_s"])][-PACE_ROUNDS - 1 :]
        self.granted_bytes += int(line.get("granted_bytes", 0))
        self.spent_bytes[life] = int(
            line.get("spent_total_bytes", self.spent_bytes.get(life, 0) + int(line.get("spent_bytes", 0)))
        )
        self.count_links(life, line.get("links", {}))

    def count_links(self, life: int, links: Record) -> None:
        """Take in the counters of a line; they are cumulative in each life."""
        self.links[life] = {
            peer: (int(link.get("sent_bytes", 0)), (link.get("latency_s") or {}).get("p50"))
            for peer, link in links.items()
        }

    def round_s(self) -> float | None:
        """Mean seconds of the last rounds; None before the second one."""
        if len(self.ends_s) < 2:
            return None
        return (self.ends_s[-1] - self.ends_s[0]) / (len(self.ends_s) - 1)

    def sent_to(self) -> dict[str, int]:
        """Bytes sent by peer, over all lives."""
        total: dict[str, int] = {}
        for links in self.links.values():
            for peer, (sent, _) in links.items():
                total[peer] = total.get(peer, 0) + sent
        return total

    def latency_s(self, source: str) -> float | None:
        """Median latency of messages from `source` in the newest life that has one."""
        found = [links[source][1] for _, links in sorted(self.links.items()) if source in links]
        return next((latency for latency in reversed(found) if latency is not None), None)

    def sent_bytes(self) -> int:
        """Bytes sent to all peers, over all lives."""
        return sum(self.sent_to().values())
