"""The harness's judge: what each device knows of everybody's data, from the snapshots that devices leave.

A process beside the devices, at low priority: it costs no emulated time, and no device sees what it finds
(method 10).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from emulation.analysis.consensus_error import Consensus
from emulation.analysis.records import Record
from emulation.scenario.schema import Scenario
from peers import plugins
from peers.models.loader import LoadedModel, load_model
from peers.runtime.child_process import guard, redirect_output
from peers.storage.snapshots import SnapshotModel
from peers.tasks import Encoded, Example, encode, tasks
from peers.tasks.encode import IGNORED
from peers.tasks.score import LOGITS_CEILING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POLL_S = 0.2
MAX_BATCH = 256
DONE_MARKER = ".devices-done"
CONTROL = "control"
KEPT = "snapshots"  # a folder of this name in the run's: snapshots go there, for another exam


def process_main(out: Path, scenario: Scenario, lifeline: Connection | None = None) -> None:
    """Entry point of the process that the launcher starts; its output goes to `evaluator.log`."""
    guard(lifeline)
    redirect_output(out / "evaluator.log")
    os.nice(5)
    torch.set_num_threads(1)
    code = 0
    try:
        main(out, scenario)
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as a device does: no library's exit handler may keep it alive


def main(out: Path, scenario: Scenario) -> None:
    """Evaluate snapshots as they come, until the launcher says that no device is left and none is open."""
    plugins.load(scenario.plugins)
    evaluator = Evaluator(scenario)
    with (out / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        while True:
            last = (out / DONE_MARKER).exists()  # looked at first: what came before it is then drained
            found = sorted((out / "devices").glob("*/snapshots/*.safetensors"), key=_age)
            for path in found:
                _write(file.fileno(), evaluator.records(path))
                _put_away(path, out / KEPT)
            if last:
                break
            if not found:
                time.sleep(POLL_S)
        _write(file.fileno(), evaluator.rest())


def _put_away(path: Path, kept: Path) -> None:
    if not kept.is_dir():
        path.unlink()
        return
    folder = kept / path.parts[-3]  # the device's
    folder.mkdir(exist_ok=True)
    path.replace(folder / path.name)


def _age(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, str(path)


def _write(fd: int, records: Iterable[Record]) -> None:
    for record in records:
        os.write(fd, (json.dumps(record, allow_nan=False) + "\n").encode())


class Evaluator:
    """A model that takes on what snapshots hold, and the examples it is asked."""

    def __init__(self, scenario: Scenario) -> None:
        loaded = load_model(scenario.model)
        self._snapshot = SnapshotModel(loaded, scenario.device_config())
        self._trained, self._everything = _exams(scenario, loaded)
        self._consensus = Consensus(scenario.eval.every)

    def records(self, path: Path) -> list[Record]:
        """The lines of evaluations.jsonl that a snapshot gives."""
        about = self._snapshot.load(path)
        tag, round_ = about["tag"], int(about["round"])
        # Of ordinary rounds only the training facts: with the rest it would cost twice the time.
        exam = self._trained if tag == "round" else self._everything
        scores = exam.take(self._snapshot.model)
        line = {"device": about["device"], "round": round_, "tag": tag, **scores}
        if tag != "round":
            return [line]
        return [line, *_consensus_lines(self._consensus.add(round_, load_file(path)))]

    def rest(self) -> list[Record]:
        """The consensus errors of the last rounds."""
        return _consensus_lines(self._consensus.rest())


def _consensus_lines(errors: dict[int, float]) -> list[Record]:
    """To 9 digits: the last ones depend on the order in which snapshots were read."""
    return [{"round": r, "tag": "round", "consensus_error": float(f"{e:.9g}")} for r, e in errors.items()]


@dataclass(frozen=True)
class Exam:
    """Examples of many shards as one batch. `parts`: (kind, shard) and the rows [first, end) of each."""

    encoded: Encoded
    parts: tuple[tuple[str, str, int, int], ...]

    def take(self, model: PreTrainedModel) -> Record:
        """Accuracy and loss by shard (docs/records.md); what has no examples is left out."""
        known, loss, tokens = answer(model, self.encoded)
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


def _exams(scenario: Scenario, loaded: LoadedModel) -> tuple[Exam, Exam]:
    """What each shard trains on; and that with the other wording and the facts that nobody trains."""
    task = tasks.get(scenario.data.kind)(scenario.data, scenario.seed)
    parts: list[tuple[str, str, int, int]] = []
    examples: list[Example] = []

    def ask(kind: str, shard: str, added: list[Example]) -> None:
        if added:
            parts.append((kind, shard, len(examples), len(examples) + len(added)))
            examples.extend(added)

    for shard in scenario.all_devices:
        ask("accuracy", shard, task.train_examples(shard))
    trained = len(parts)
    for shard in scenario.all_devices:
        ask("other_wording", shard, task.other_wording(shard))
    ask(CONTROL, "", task.control_examples())
    encoded = encode(examples, loaded.tokenizer, scenario.data.max_length)
    rows = torch.arange(parts[trained - 1][3])
    return Exam(encoded.rows(rows), tuple(parts[:trained])), Exam(encoded, tuple(parts))


@torch.no_grad()
def answer(model: PreTrainedModel, encoded: Encoded) -> tuple[Tensor, Tensor, Tensor]:
    """By example, [n] each: whether every response token is the most likely one; summed loss; tokens.

    The rule of `peers.tasks.score`, kept apart by example.
    """
    per_example = encoded.input_ids.shape[1] * int(model.config.vocab_size)
    rows = max(1, min(MAX_BATCH, LOGITS_CEILING // per_example))
    parts = [_answer(model, encoded.rows(i)) for i in torch.split(torch.arange(len(encoded)), rows)]
    known, loss, tokens = (torch.cat(column) for column in zip(*parts, strict=True))
    return known, loss, tokens


def _answer(model: PreTrainedModel, part: Encoded) -> tuple[Tensor, Tensor, Tensor]:
    part = part.to(next(model.parameters()).device)
    output = model(input_ids=part.input_ids, attention_mask=part.attention_mask)
    logits, labels = output.logits[:, :-1].float(), part.labels[:, 1:]
    counts = labels != IGNORED
    known = ((logits.argmax(dim=-1) == labels) | ~counts).all(dim=1)
    loss = functional.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    ).sum(dim=1)
    return known.cpu(), loss.cpu(), counts.sum(dim=1).cpu()
