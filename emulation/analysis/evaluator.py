"""The evaluator measures how well each device knows the data of every device, from snapshots of its model.

It is a process beside the devices, at low priority. It takes no emulated time, and no device sees its results
(method 10).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from emulation.analysis import records
from emulation.analysis.consensus_error import ConsensusErrors
from emulation.analysis.records import Record
from emulation.scenario.schema import Scenario
from peers import plugins
from peers.models.loader import LoadedModel, load_model
from peers.runtime.child_process import end_process, failure_recorded, guard, redirect_output
from peers.storage.adapter_folder import tensors_sha256
from peers.storage.snapshots import SnapshotModel
from peers.tasks import AnyExample, Batch, make_task, score_examples

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POLL_S = 0.2
LOG = "evaluator.log"
DONE_MARKER = ".devices-done"
CONTROL = "control"
KEPT_SNAPSHOTS = records.KEPT_SNAPSHOTS


def process_main(out: Path, scenario: Scenario, lifeline: Connection | None = None) -> None:
    """Entry point of the evaluator process. Its output goes to LOG."""
    guard(lifeline)
    log = out / LOG
    redirect_output(log)
    os.nice(5)
    torch.set_num_threads(1)
    code = 0
    try:
        with failure_recorded(log):
            main(out, scenario)
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = 1
    end_process(code)


def main(out: Path, scenario: Scenario) -> None:
    """Evaluate snapshots as they arrive, until the launcher has written DONE_MARKER and none is left."""
    plugins.load(scenario.plugins)
    evaluator = Evaluator(scenario)
    with (out / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        while True:
            last = (out / DONE_MARKER).exists()  # read first: the list then has all snapshots
            snapshots = sorted((out / "devices").glob("*/snapshots/*.safetensors"), key=_modified)
            for path in snapshots:
                _write(file.fileno(), evaluator.evaluate_snapshot(path))
                _keep_or_delete(path, out / KEPT_SNAPSHOTS)
            if last:
                break
            if not snapshots:
                time.sleep(POLL_S)
        _write(file.fileno(), evaluator.last_consensus_errors())


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
    """Loads snapshots into one model and evaluates it on the examples of all devices."""

    def __init__(self, scenario: Scenario) -> None:
        loaded = load_model(scenario.model)
        self._snapshot = SnapshotModel(loaded, scenario.device_config())
        self._trained, self._everything = _example_sets(scenario, loaded)
        self._consensus = ConsensusErrors(scenario.eval.every)
        self._known: dict[tuple[str, bool], Record] = {}  # scores by adapter and `_everything`

    def evaluate_snapshot(self, path: Path) -> list[Record]:
        """Evaluate one snapshot. Returns its lines of evaluations.jsonl (docs/records.md)."""
        about = self._snapshot.load(path)
        tag, round_ = about["tag"], int(about["round"])
        # In ordinary rounds only the training examples: the others would double the time.
        tensors = load_file(path)
        known = tensors_sha256(tensors) + about.get("slots", ""), tag != "round"
        if known not in self._known:  # devices whose copies agree have one model
            examples = self._everything if tag != "round" else self._trained
            self._known[known] = examples.evaluate(self._snapshot.model)
        line = {"device": about["device"], "round": round_, "tag": tag, **self._known[known]}
        if tag != "round":
            return [line]
        return [line, *_consensus_lines(self._consensus.add_snapshot(round_, tensors))]

    def last_consensus_errors(self) -> list[Record]:
        """The lines of evaluations.jsonl with the consensus errors of the rounds that are still open."""
        return _consensus_lines(self._consensus.close_all())


def _consensus_lines(errors: dict[int, float]) -> list[Record]:
    """Rounded to 9 digits, since further digits depend on the order in which snapshots were read."""
    return [{"round": r, "tag": "round", "consensus_error": float(f"{e:.9g}")} for r, e in errors.items()]


@dataclass(frozen=True)
class ExampleSet:
    """Examples of many shards as one batch. `parts`: kind, shard, and its rows [first, end)."""

    encoded: Batch
    parts: tuple[tuple[str, str, int, int], ...]

    def evaluate(self, model: PreTrainedModel) -> Record:
        """Accuracy and loss by shard (docs/records.md). A shard without examples is left out."""
        known, loss, tokens = score_examples(model, self.encoded)
        found: Record = {"accuracy": {}, "loss": {}}
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
    """The training examples of all shards; and these with the other wording and the control examples."""
    task = make_task(scenario.device_config())
    parts: list[tuple[str, str, int, int]] = []
    examples: list[AnyExample] = []

    def add_part(kind: str, shard: str, added: Sequence[AnyExample]) -> None:
        if added:
            parts.append((kind, shard, len(examples), len(examples) + len(added)))
            examples.extend(added)

    for shard in scenario.all_devices:
        add_part("accuracy", shard, task.train_examples(shard))
    trained = len(parts)
    for shard in scenario.all_devices:
        add_part("other_wording", shard, task.other_wording(shard))
    add_part(CONTROL, "", task.control_examples())
    encoded = loaded.encode(examples, scenario.data.max_length)
    rows = torch.arange(parts[trained - 1][3])
    return ExampleSet(encoded.rows(rows), tuple(parts[:trained])), ExampleSet(encoded, tuple(parts))
