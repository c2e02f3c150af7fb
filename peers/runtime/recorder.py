"""What a device writes into its folder: one JSON object a line, flushed: a kill costs one line at most."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from peers.protocol.actions import RoundDone

if TYPE_CHECKING:
    from peers.learning.learner import TrainResult


class Recorder:
    """`events.jsonl` and `metrics.jsonl` of one device. Times are seconds from the run's start."""

    def __init__(self, folder: Path, epoch_ns: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._epoch_ns = epoch_ns
        self._events = (folder / "events.jsonl").open("a", encoding="utf-8")
        self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self.is_first = self._metrics.tell() == 0  # no earlier life of the device has closed a round

    def seconds(self, at_ns: int) -> float:
        return round((at_ns - self._epoch_ns) / 1e9, 6)

    def event(self, at_ns: int, round_: int, event: str, fields: dict[str, object]) -> None:
        head = {"t_s": self.seconds(at_ns), "round": round_, "event": event}
        _write(self._events, {**head, **{k: v for k, v in fields.items() if k != "round"}})

    def metrics(self, record: dict[str, object]) -> None:
        _write(self._metrics, record)

    def close(self) -> None:
        self._events.close()
        self._metrics.close()


def round_line(done: RoundDone, trained: TrainResult, seconds: Callable[[int], float]) -> dict[str, object]:
    """What a closed round says of itself. `compute_s` is real time, all else the run's clock's."""
    return {
        "round": done.round,
        "phase": done.phase,
        "t0_s": seconds(done.start_ns),
        "t1_s": seconds(done.end_ns),
        "loss": trained.loss,
        "steps": trained.steps,
        "train_s": (done.trained_ns - done.start_ns) / 1e9,
        "compute_s": trained.seconds,
        "wait_s": (done.end_ns - done.trained_ns) / 1e9,
        "weights": done.weights,
        "withheld": done.withheld,
        "sent": {group: dict(codecs) for group, codecs in done.sent.items()},
        "members": list(done.members),
    }


def _write(file: TextIO, record: dict[str, object]) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()
