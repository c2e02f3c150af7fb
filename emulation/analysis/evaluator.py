"""The evaluator measures how well each device knows the data of every device, from snapshots of its model.

It is a process beside the devices. It takes no emulated time, and no device sees its results (method 10). It
has the priority of a device. At a lower one it starves on a machine that the devices fill.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import xxhash
from safetensors.torch import load_file

from emulation.analysis import records
from emulation.analysis.consensus_error import ConsensusErrors
from emulation.analysis.records import Record
from emulation.scenario.schema import Scenario
from peers import plugins
from peers.models.loader import LoadedModel, load_model
from peers.runtime.child_process import end_process, guard, redirect_output
from peers.storage.snapshots import SnapshotModel
from peers.tasks import Encoded, Example, encode, make_task, score_examples

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POLL_S = 0.2
KEPT_SCORES = 64  # contents whose scores are remembered
DONE_MARKER = ".devices-done"
CONTROL = "control"
KEPT_SNAPSHOTS = records.KEPT_SNAPSHOTS


def process_main(out: Path, scenario: Scenario, lifeline: Connection | None = None) -> None:
    """Entry point of the evaluator process. Its output goes to `evaluator.log`."""
    guard(lifeline)
    redirect_output(out / "evaluator.log")
    torch.set_num_threads(1)
    code = 0
    try:
        main(out, scenario)
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = 1
    end_process(code)


def main(out: Path, scenario: Scenario) -> None:
    """Evaluate snapshots as they arrive, until the launcher has written DONE_MARKER and none is left.

    At the end EVALUATOR_FILE says what that has cost.
    """
    plugins.load(scenario.plugins)
    evaluator, queue = Evaluator(scenario), SnapshotQueue(out)
    with (out / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        while True:
            last = (out / DONE_MARKER).exists()  # read first: the queue then has all snapshots
            for path in queue.find_new():
                _write(file.fileno(), evaluator.add_to_consensus(path))
            next_one = queue.pop()
            if next_one is not None:
                _write(file.fileno(), [evaluator.score(next_one)])
                _keep_or_delete(next_one, out / KEPT_SNAPSHOTS)
            elif last:
                break
            else:
                time.sleep(POLL_S)
        _write(file.fileno(), evaluator.last_consensus_errors())
    records.write_whole(out / records.EVALUATOR_FILE, json.dumps(evaluator.cost()))


class SnapshotQueue:
    """The snapshots that are not evaluated yet, the most urgent first.

    Snapshots of events, the oldest first, and those of rounds, the newest first, take turns: an evaluator
    that lags shall still show how the devices are now. The rest follows when there is time.
    """

    def __init__(self, out: Path) -> None:
        self._devices = out / "devices"
        self._known: set[Path] = set()
        self._events: deque[Path] = deque()
        self._rounds: list[Path] = []
        self._event_is_next = True

    def find_new(self) -> list[Path]:
        """Add the new files; returns them, the oldest first."""
        found = self._devices.glob("*/snapshots/*.safetensors")
        new = sorted((path for path in found if path not in self._known), key=_modified)
        self._known.update(new)
        self._events += [path for path in new if _tag(path) != "round"]
        self._rounds += [path for path in new if _tag(path) == "round"]
        self._rounds.sort(key=lambda path: path.name)  # names begin with the round
        return new

    def pop(self) -> Path | None:
        """The next snapshot to evaluate; None if there is none."""
        self._event_is_next = bool(self._events) and (self._event_is_next or not self._rounds)
        if self._event_is_next:
            self._event_is_next = False
            return self._events.popleft()
        self._event_is_next = True
        return self._rounds.pop() if self._rounds else None


def evaluate_run(out: Path, scenario: Scenario, tags: Collection[str] | None = None) -> None:
    """Evaluate the snapshots of a run that has ended, in the order of their rounds, in this process.

    `tags`: only snapshots of these tags ("round", "end", ...); None: all.
    """
    found = sorted(
        (out / "devices").glob("*/snapshots/*.safetensors"), key=lambda path: (path.name, str(path))
    )
    chosen = [path for path in found if tags is None or _tag(path) in tags]
    evaluator = Evaluator(scenario) if chosen else None
    with (out / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        for path in chosen:
            assert evaluator is not None
            _write(file.fileno(), evaluator.evaluate_snapshot(path))
        if evaluator is not None:
            _write(file.fileno(), evaluator.last_consensus_errors())
    for path in found:
        _keep_or_delete(path, out / KEPT_SNAPSHOTS)


def _tag(path: Path) -> str:
    """Of `<round>-<tag>.safetensors`."""
    return path.name.removesuffix(".safetensors").partition("-")[2]


def _round(path: Path) -> int:
    """Of `<round>-<tag>.safetensors`."""
    return int(path.name.partition("-")[0])


def _keep_or_delete(path: Path, kept: Path) -> None:
    if not kept.is_dir():
        path.unlink()
        return
    folder = kept / path.parts[-3]  # the device id
    folder.mkdir(exist_ok=True)
    path.replace(folder / path.name)


def _modified(path: Path) -> tuple[int, str]:
    """Sort key: the oldest snapshot first."""
    return path.stat().st_mtime_ns, str(path)


def _write(fd: int, lines: Iterable[Record]) -> None:
    for record in lines:
        os.write(fd, (json.dumps(record, allow_nan=False) + "\n").encode())


class Evaluator:
    """Loads snapshots into one model and evaluates it on the examples of all devices.

    Snapshots with equal contents are evaluated once, for instance those of a round and of an event after it.
    """

    def __init__(self, scenario: Scenario) -> None:
        loaded = load_model(scenario.model)
        self._snapshot = SnapshotModel(loaded, scenario.device_config())
        self._trained, self._others = _example_sets(scenario, loaded)
        self._consensus = ConsensusErrors(scenario.eval.every)
        self._scores: dict[str, Record] = {}  # on the training examples, by the content of the snapshot
        self._evaluated = self._reused = 0

    def evaluate_snapshot(self, path: Path) -> list[Record]:
        """Evaluate one snapshot. Returns its lines of evaluations.jsonl (docs/records.md)."""
        return [self.score(path), *self.add_to_consensus(path)]

    def score(self, path: Path) -> Record:
        """The line of a snapshot with its accuracies."""
        about = self._snapshot.load(path)
        tag = about["tag"]
        scores = self._trained_scores(_digest(path, about.get("slots", "")))
        if tag != "round":  # in ordinary rounds the other examples would double the time
            scores = {**self._others.evaluate(self._snapshot.model), **scores}
        self._evaluated += 1
        return {"device": about["device"], "round": int(about["round"]), "tag": tag, **scores}

    def _trained_scores(self, digest: str) -> Record:
        """The scores of the loaded snapshot on the training examples."""
        known = self._scores.pop(digest, None)
        self._reused += known is not None
        found = self._trained.evaluate(self._snapshot.model) if known is None else known
        self._scores[digest] = found  # as the newest one
        if len(self._scores) > KEPT_SCORES:
            del self._scores[next(iter(self._scores))]
        return found

    def add_to_consensus(self, path: Path) -> list[Record]:
        """The lines with the consensus errors of the rounds that this snapshot closes."""
        if _tag(path) != "round":
            return []
        return _consensus_lines(self._consensus.add_snapshot(_round(path), load_file(path)))

    def last_consensus_errors(self) -> list[Record]:
        """The lines of evaluations.jsonl with the consensus errors of the rounds that are still open."""
        return _consensus_lines(self._consensus.close_all())

    def cost(self) -> Record:
        """CPU seconds of this process, evaluated snapshots, and those of them whose scores were known."""
        return {"cpu_s": time.process_time(), "snapshots": self._evaluated, "reused": self._reused}


def _digest(path: Path, slots: str) -> str:
    """Equal for snapshots of equal models, whatever device wrote them and in which round."""
    found = xxhash.xxh3_128(slots.encode())
    for name, tensor in sorted(load_file(path).items()):
        found.update(name.encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def _consensus_lines(errors: dict[int, float]) -> list[Record]:
    """Rounded to 9 digits, since further digits depend on the order in which snapshots were read."""
    return [{"round": r, "tag": "round", "consensus_error": float(f"{e:.9g}")} for r, e in errors.items()]


@dataclass(frozen=True)
class ExampleSet:
    """Examples of many shards as one batch. `parts`: kind, shard, and its rows [first, end)."""

    encoded: Encoded
    parts: tuple[tuple[str, str, int, int], ...]

    def evaluate(self, model: PreTrainedModel) -> Record:
        """Accuracy and loss by shard (docs/records.md). A shard without examples is left out."""
        found: Record = {"accuracy": {}, "loss": {}}
        if not self.parts:
            return found
        known, loss, tokens = score_examples(model, self.encoded)
        for kind, shard, first, end in self.parts:
            accuracy = float(known[first:end].float().mean())
            if kind == CONTROL:
                found[CONTROL] = accuracy
                continue
            found.setdefault(kind, {})[shard] = accuracy
            nats = float(loss[first:end].sum() / tokens[first:end].sum())
            if kind == "accuracy":
                found["loss"][shard] = nats if math.isfinite(nats) else None
        return found


def _example_sets(scenario: Scenario, loaded: LoadedModel) -> tuple[ExampleSet, ExampleSet]:
    """The training examples of all shards; and the examples in other wording with the control examples."""
    task = make_task(scenario.device_config())
    parts: list[tuple[str, str, int, int]] = []
    examples: list[Example] = []

    def add_part(kind: str, shard: str, added: list[Example]) -> None:
        if added:
            parts.append((kind, shard, len(examples), len(examples) + len(added)))
            examples.extend(added)

    for shard in scenario.all_devices:
        add_part("accuracy", shard, task.train_examples(shard))
    trained = len(parts)
    for shard in scenario.all_devices:
        add_part("other_wording", shard, task.other_wording(shard))
    add_part(CONTROL, "", task.control_examples())
    encoded = encode(examples, loaded.tokenizer, scenario.data.max_length)
    first = parts[trained - 1][3] if trained else 0
    others = [(kind, shard, start - first, end - first) for kind, shard, start, end in parts[trained:]]
    rows = torch.arange(len(examples))
    return (
        ExampleSet(encoded.rows(rows[:first]), tuple(parts[:trained])),
        ExampleSet(encoded.rows(rows[first:]), tuple(others)),
    )
