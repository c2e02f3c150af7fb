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
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from coordinator_free.seeded_random import generator
from emulation.analysis import records
from emulation.analysis.consensus_error import ConsensusErrors
from emulation.analysis.event_metrics import write_asked
from emulation.analysis.metric_suite import MetricSuite, Sets
from emulation.analysis.records import Record
from emulation.analysis.token_scores import TokenScores, by_example
from emulation.analysis.unlearning_metrics import attack_auc
from emulation.scenario.schema import Scenario
from peers import plugins
from peers.models.loader import LoadedModel, load_model
from peers.runtime.child_process import end_process, failure_recorded, guard, redirect_output
from peers.storage.record_files import open_records
from peers.storage.snapshots import Snapshot, SnapshotModel, read_snapshot
from peers.tasks import AnyExample, Batch, Example, HasUtility, TokenTable, make_task, score_tokens, texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POLL_S = 0.2
LOG = "evaluator.log"
DONE_MARKER = ".devices-done"
CONTROL = "control"
TRAINED = "accuracy"  # the kind of the training examples, by the name of their values
KEPT_SNAPSHOTS = records.KEPT_SNAPSHOTS


def process_main(out: Path, scenario: Scenario, lifeline: Connection | None = None) -> None:
    """Entry point of the evaluator process. Its output goes to LOG."""
    guard(lifeline)
    log = out / LOG
    redirect_output(log)
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
    """Evaluate snapshots as they arrive, until the launcher has written DONE_MARKER and none is left.

    At the end EVALUATOR_FILE says what that has cost.
    """
    plugins.load(scenario.plugins)
    evaluator, queue = Evaluator(scenario), SnapshotQueue(out, scenario)
    if scenario.eval.samples:
        write_asked(out, choose_examples(scenario).sets().shards, scenario.eval.samples)
    with open_records(out / records.EVALUATIONS) as file:
        while True:
            last = (out / DONE_MARKER).exists()  # read first: the queue then has all snapshots
            for path in queue.find_new():
                _write(file.fileno(), evaluator.add_to_consensus(path))
                if not _examined(scenario, path):
                    _keep_or_delete(path, out / KEPT_SNAPSHOTS)
            next_one = queue.pop()
            if next_one is not None:
                _write(file.fileno(), [evaluator.score(read_snapshot(next_one))])
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

    def __init__(self, out: Path, scenario: Scenario) -> None:
        self._devices, self._scenario = out / "devices", scenario
        self._known: set[Path] = set()
        self._events: deque[Path] = deque()
        self._rounds: list[Path] = []
        self._event_is_next = True

    def find_new(self) -> list[Path]:
        """Add the new files that `eval.devices` asks for; returns all new files, the oldest first."""
        found = self._devices.glob("*/snapshots/*.safetensors")
        new = sorted((path for path in found if path not in self._known), key=_modified)
        self._known.update(new)
        added = [path for path in new if _examined(self._scenario, path)]
        self._events += [path for path in added if _tag(path) != "round"]
        self._rounds += [path for path in added if _tag(path) == "round"]
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
    with (out / records.EVALUATIONS).open("a", encoding="utf-8") as file:
        for path in chosen:
            assert evaluator is not None
            evaluated = (
                evaluator.evaluate_snapshot if _examined(scenario, path) else evaluator.add_to_consensus
            )
            _write(file.fileno(), evaluated(path))
        if evaluator is not None:
            _write(file.fileno(), evaluator.last_consensus_errors())
    for path in found:
        _keep_or_delete(path, out / KEPT_SNAPSHOTS)


def _tag(path: Path) -> str:
    """Of `<round>-<tag>.safetensors`."""
    return path.name.removesuffix(".safetensors").partition("-")[2]


def _examined(scenario: Scenario, path: Path) -> bool:
    """Whether `eval.devices` asks for this snapshot."""
    return scenario.evaluates(path.parts[-3], _tag(path))


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

    Snapshots with the same blocks are evaluated once. Copies that were sent in 16 bits differ from the
    owner's, so these are mostly snapshots that one device wrote of one state. A snapshot of a round needs a
    part of the result of an event's snapshot.
    """

    def __init__(self, scenario: Scenario) -> None:
        loaded = load_model(scenario.model)
        chosen = choose_examples(scenario)
        self._tokenizer = loaded.tokenizer
        self._suite = MetricSuite(scenario.eval, chosen.sets(), loaded, scenario.data.max_length)
        self._snapshot = SnapshotModel(loaded, scenario.device_config())
        self._trained, self._others = _example_sets(chosen, loaded, scenario.data.max_length)
        # The metrics of a scenario of images are this attack, or none (scenario/metric_checks.py).
        self._attacks_images = bool(scenario.eval.metrics) and not texts(self._trained.examples)
        self._consensus = ConsensusErrors(scenario.eval.every)
        self._known: dict[str, _Known] = {}  # by hash
        self._newest = _Known()  # the only one that keeps its table, which is large
        self._evaluated = self._reused = 0  # snapshots

    def evaluate_snapshot(self, path: Path) -> list[Record]:
        """Evaluate one snapshot. Returns its lines of evaluations.jsonl (docs/records.md)."""
        snapshot = read_snapshot(path)
        return [self.score(snapshot), *self._consensus_of(snapshot)]

    def score(self, snapshot: Snapshot) -> Record:
        """The line of a snapshot with its accuracies."""
        about = snapshot.meta
        ordinary, known = about["tag"] == "round", self._known.setdefault(snapshot.sha256(), _Known())
        self._evaluated += 1
        if known.lacks(ordinary):
            self._snapshot.place(snapshot)
            self._complete(known, ordinary, [block.device for block in snapshot.blocks()])
        else:
            self._reused += 1
        head = {"device": about["device"], "round": int(about["round"]), "tag": about["tag"]}
        return {**head, **known.trained, **({} if ordinary else known.others or {})}

    def add_to_consensus(self, path: Path) -> list[Record]:
        """The lines with the consensus errors of the rounds that this snapshot closes."""
        return self._consensus_of(read_snapshot(path)) if _tag(path) == "round" else []

    def _consensus_of(self, snapshot: Snapshot) -> list[Record]:
        if snapshot.meta["tag"] != "round":
            return []
        round_ = int(snapshot.meta["round"])
        return _consensus_lines(self._consensus.add_snapshot(round_, snapshot.tensors))

    def cost(self) -> Record:
        """CPU seconds of this process, and how many snapshots it has evaluated, each different one once."""
        return {
            "cpu_s": time.process_time(),
            "snapshots": self._evaluated,
            "reused": self._reused,
        }

    def _complete(self, known: _Known, ordinary: bool, kept: Sequence[str]) -> None:
        """In ordinary rounds only the training examples: the others would multiply the time.

        They are scored apart from the others, so that their values do not depend on the order of snapshots.
        """
        model = self._snapshot.model
        if known is not self._newest:
            self._newest.table, self._newest = None, known
        if known.table is None:
            known.table = self._trained.score(model)
            known.trained = self._trained.record(known.table)
        if not ordinary:
            table = self._others.score(model)
            scores = self._trained.by_example(known.table, self._tokenizer)
            scores |= self._others.by_example(table, self._tokenizer)
            known.others = self._others.record(table) | self._suite.evaluate(model, kept, scores)
            if self._attacks_images:
                losses = self._trained.losses(known.table), self._others.losses(table)
                known.others["metrics"] = {"mia_loss": _loss_attack(*losses)}

    def last_consensus_errors(self) -> list[Record]:
        """The lines of evaluations.jsonl with the consensus errors of the rounds that are still open."""
        return _consensus_lines(self._consensus.close_all())


def _consensus_lines(errors: dict[int, float]) -> list[Record]:
    """Rounded to 9 digits, since further digits depend on the order in which snapshots were read."""
    return [{"round": r, "tag": "round", "consensus_error": float(f"{e:.9g}")} for r, e in errors.items()]


@dataclass
class _Known:
    """What is known about the model of one hash: on the training examples, and on all others with metrics.

    table: of the training examples; None: not known, or known no longer.
    """

    table: TokenTable | None = None
    trained: Record = field(default_factory=dict)
    others: Record | None = None

    def lacks(self, ordinary: bool) -> bool:
        """Whether a snapshot needs more than this. ordinary: it needs the training examples only."""
        return not self.trained or (self.others is None and not ordinary)


@dataclass(frozen=True)
class ExampleSet:
    """Examples of many shards as one batch. `parts`: kind, shard, and its rows [first, end)."""

    examples: Sequence[AnyExample]
    encoded: Batch
    parts: tuple[tuple[str, str, int, int], ...]

    def score(self, model: PreTrainedModel) -> TokenTable:
        """The scores of the tokens of all examples."""
        return score_tokens(model, self.encoded)

    def by_example(
        self, scores: TokenTable, tokenizer: PreTrainedTokenizerBase
    ) -> dict[Example, TokenScores]:
        """The scores of the examples, for the metrics; empty for images, which have none."""
        found = texts(self.examples)
        return (
            dict(zip(found, by_example(found, self.encoded, scores, tokenizer), strict=True)) if found else {}
        )

    def losses(self, scores: TokenTable) -> dict[tuple[str, str], list[float]]:
        """The losses of the examples in nats, by kind and shard."""
        _, loss, _ = scores.by_example(self.encoded)
        return {(kind, shard): loss[first:end].tolist() for kind, shard, first, end in self.parts}

    def record(self, scores: TokenTable) -> Record:
        """Accuracy by kind and shard, and the loss on training examples (docs/records.md).

        A shard without examples is left out.
        """
        known, loss, tokens = scores.by_example(self.encoded)
        found: Record = {}
        for kind, shard, first, end in self.parts:
            accuracy = float(known[first:end].float().mean())
            if kind == CONTROL:
                found[CONTROL] = accuracy
                continue
            found.setdefault(kind, {})[shard] = accuracy
            if kind == TRAINED:
                nats = float(loss[first:end].sum() / tokens[first:end].sum())
                found.setdefault("loss", {})[shard] = nats if math.isfinite(nats) else None
        return found


def _loss_attack(
    trained: Mapping[tuple[str, str], Sequence[float]], others: Mapping[tuple[str, str], Sequence[float]]
) -> dict[str, float]:
    """Membership inference by loss on images: each shard against the control images."""
    control = others[CONTROL, ""]
    return {shard: attack_auc(members, control) for (_, shard), members in trained.items()}


@dataclass(frozen=True)
class Chosen:
    """The examples of a run that are evaluated: at most `eval.examples` of each part."""

    trained: dict[str, Sequence[AnyExample]]
    other_wording: dict[str, Sequence[AnyExample]]
    control: Sequence[AnyExample]
    utility: dict[str, Sequence[AnyExample]]

    def sets(self) -> Sets:
        """The examples that are texts: metrics and generated answers are for them."""
        return Sets(_texts(self.trained), texts(self.control), _texts(self.utility))


def _texts(parts: Mapping[str, Sequence[AnyExample]]) -> dict[str, list[Example]]:
    return {name: texts(examples) for name, examples in parts.items()}


def choose_examples(scenario: Scenario) -> Chosen:
    """Read the task's examples and choose those that are evaluated. The choice is a function of the seed."""
    task = make_task(scenario.device_config())

    def choose(examples: Sequence[AnyExample], *words: str) -> Sequence[AnyExample]:
        if len(examples) <= scenario.eval.examples:
            return examples
        order = generator(scenario.seed, "evaluated", *words).permutation(len(examples))
        return [examples[i] for i in sorted(order[: scenario.eval.examples].tolist())]

    shards = scenario.all_devices
    utility = task.utility_examples() if isinstance(task, HasUtility) else {}
    return Chosen(
        {shard: choose(task.train_examples(shard), shard) for shard in shards},
        {shard: choose(task.other_wording(shard), shard) for shard in shards},
        choose(task.control_examples(), CONTROL),
        {name: choose(examples, name) for name, examples in utility.items()},
    )


def _example_sets(chosen: Chosen, loaded: LoadedModel, max_length: int) -> tuple[ExampleSet, ExampleSet]:
    """The training examples of all shards; and those in the other wording and the control examples."""

    def batch(parts: Iterable[tuple[str, str, Sequence[AnyExample]]]) -> ExampleSet:
        places: list[tuple[str, str, int, int]] = []
        examples: list[AnyExample] = []
        for kind, shard, some in parts:
            if some:
                places.append((kind, shard, len(examples), len(examples) + len(some)))
                examples.extend(some)
        return ExampleSet(examples, loaded.encode(examples, max_length), tuple(places))

    others = [("other_wording", shard, some) for shard, some in chosen.other_wording.items()]
    return (
        batch((TRAINED, shard, some) for shard, some in chosen.trained.items()),
        batch([*others, (CONTROL, "", chosen.control)]),
    )
