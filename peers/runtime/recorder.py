"""Records of a device in its folder, one JSON object a line. A kill loses at most one line of each file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from peers.protocol.actions import RoundDone
from peers.runtime.futures import call_when_done
from peers.storage.record_files import open_records
from transport.clocks.real import Clock

if TYPE_CHECKING:
    from peers.learning.local_steps import TrainResult

Result = TypeVar("Result")
Fields = dict[str, object]


EVENTS, METRICS = "events.jsonl", "metrics.jsonl"


def next_life(folder: Path) -> int:
    """The number of lives of a device that its folder holds records of.

    The caller holds the claim of the id (emulation/testbed/id_leases.py), so no other process writes here.
    Records of older versions have no number. Then each `started` record began a life.
    """
    lives = started = 0
    for path in (folder / EVENTS, folder / METRICS):
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:  # half a line of a killed process
                continue
            if isinstance(record, dict):
                started += record.get("event") == "started" and "life" not in record
                lives = max(lives, started, int(record.get("life", -1)) + 1)
    return lives


class Recorder:
    """Writes `events.jsonl` and `metrics.jsonl` of one device. Times are seconds since the run's start.

    Each record has the number of the process among those of the device: its `life`.
    """

    def __init__(self, folder: Path, epoch_ns: int, life: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._epoch_ns, self._life = epoch_ns, life
        self._events = open_records(folder / EVENTS)
        self._metrics = open_records(folder / METRICS)
        self.is_first = self._metrics.tell() == 0  # no earlier process of the device has closed a round

    def seconds(self, at_ns: int) -> float:
        return round((at_ns - self._epoch_ns) / 1e9, 6)

    def event(self, at_ns: int, round_: int, event: str, fields: Fields) -> None:
        head = {"life": self._life, "t_s": self.seconds(at_ns), "round": round_, "event": event}
        _write(self._events, {**head, **{k: v for k, v in fields.items() if k != "round"}})

    def metrics(self, record: Fields) -> None:
        _write(self._metrics, {"life": self._life, **record})

    def close(self) -> None:
        self._events.close()
        self._metrics.close()


class EventRecorder:
    """Writes events with the device's current round into a `Recorder`."""

    def __init__(self, recorder: Recorder, clock: Clock, current_round: Callable[[], int]) -> None:
        self._recorder, self._clock, self._current_round = recorder, clock, current_round

    def record(self, at_ns: int, event: str, **fields: object) -> None:
        self._recorder.event(at_ns, self._current_round(), event, fields)

    def record_when_done(
        self, future: Future[Result], event: str, fields: Callable[[Result], Fields | None]
    ) -> None:
        """Record the result of queued work with the round in which the work was queued.

        `fields` makes the event's fields from the result; with None no event is written.
        """
        queued_ns, round_ = self._clock.now(), self._current_round()

        def done(result: Result) -> None:
            found = fields(result)
            if found is not None:
                self._recorder.event(self._clock.completed_ns(queued_ns), round_, event, found)

        call_when_done(future, done)


def metrics_of_round(done: RoundDone, trained: TrainResult, seconds: Callable[[int], float]) -> Fields:
    """The line of a closed round. `compute_s` is real time; all other times are of the run's clock."""
    return {
        "round": done.round,
        "phase": done.phase,
        "t0_s": seconds(done.start_ns),
        "t1_s": seconds(done.end_ns),
        "loss": trained.loss if math.isfinite(trained.loss) else None,  # JSON has no nan
        "steps": trained.steps,
        "train_s": (done.trained_ns - done.start_ns) / 1e9,
        "compute_s": trained.seconds,
        "wait_s": (done.end_ns - done.trained_ns) / 1e9,
        "weights": done.weights,
        "withheld": done.withheld,
        "sent": {group: dict(codecs) for group, codecs in done.sent.items()},
        "block_bytes": dict(done.block_bytes),
        "members": list(done.members),
        **({} if done.price is None else {"price": done.price}),
        **({} if trained.epsilon is None else {"epsilon": trained.epsilon}),
    }


def _write(file: TextIO, record: Fields) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()
