"""Evaluates the mean model of the survivors in an experiment.

Only this module uses the facts of the leaver in a measurement. No policy sees them (method 10).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from emulation.experiments.statistics import auc, tpr_at_fpr
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from peers.models.loader import load_model
from peers.storage.snapshots import SnapshotModel, write_snapshot
from peers.tasks import AnyExample, Task, make_task, score_examples

FEW = 100  # TPR at 1 % needs as many non-members
FRESH_SHARDS = 5  # shards of no device, beside fewer control examples than that


@dataclass(frozen=True)
class Scores:
    """The scores of one model. Accuracies are shares. loss: L_evt on survivors' facts, nats per token.

    None: the data have no such examples.
    """

    loss: float
    retain: float | None  # survivors' facts in the trained wording; after a join: also the newcomer's
    test: float | None  # the same facts in the other wording
    forget: float | None  # the leaver's facts, or the newcomer's
    fresh: float | None  # facts that no device trains
    auc: float | None  # members: the leaver's facts; non-members: `fresh`
    tpr: float | None  # at 1 % false positives

    def to_dict(self) -> dict[str, float | None]:
        return asdict(self)


class MeanModelEvaluator:
    """The base model of a scenario and the examples to evaluate it on.

    survivors: the devices whose facts count; after a join with the newcomer, whose facts are then also those
    of `leaver`.
    """

    def __init__(self, scenario: Scenario, survivors: Sequence[str], leaver: str) -> None:
        loaded = load_model(scenario.model)
        self._snapshot = SnapshotModel(loaded, scenario.device_config())
        examples = example_sets(scenario, survivors, leaver)
        self._names = [name for name, group in examples.items() for _ in group]
        everything = [example for group in examples.values() for example in group]
        self._encoded = loaded.encode(everything, scenario.data.max_length)

    def score_snapshot(self, snapshot: Path) -> Scores:
        """The scores of the model in a snapshot."""
        self._snapshot.load(snapshot)
        known, loss, tokens = score_examples(self._snapshot.model, self._encoded)
        accuracy = {n: _mean(known.float()[self._rows(n)]) for n in ("retain", "test", "forget", "fresh")}
        retain = self._rows("retain")
        members, others = (loss[self._rows(name)].tolist() for name in ("forget", "fresh"))
        nats = float(loss[retain].sum() / tokens[retain].sum())
        return Scores(loss=nats, **accuracy, auc=auc(members, others), tpr=tpr_at_fpr(members, others))

    def _rows(self, name: str) -> Tensor:
        return torch.tensor([i for i, own in enumerate(self._names) if own == name], dtype=torch.int64)


def example_sets(
    scenario: Scenario, survivors: Sequence[str], leaver: str
) -> dict[str, Sequence[AnyExample]]:
    """The examples of `Scores`, by name. Raises InputError if there is nothing to retain or to forget."""
    task = make_task(scenario.device_config())
    examples: dict[str, Sequence[AnyExample]] = {
        "retain": [e for shard in survivors for e in task.train_examples(shard)],
        "test": [e for shard in survivors for e in task.other_wording(shard)],
        "forget": task.train_examples(leaver),
        "fresh": _fresh(task, scenario.adapter.max_devices),
    }
    held = set(examples["retain"])  # data.overlap: a fact that a survivor has too is not the leaver's alone
    for name in ("fresh",) if leaver in survivors else ("forget", "fresh"):
        examples[name] = [e for e in dict.fromkeys(examples[name]) if e not in held]
    for name, of in (("retain", ", ".join(survivors)), ("forget", leaver)):
        if not examples[name]:
            raise InputError(f"data: {of}: no examples of their own; allowed: data for each of these devices")
    return examples


def _fresh(task: Task, first: int) -> list[AnyExample]:
    """Examples that no device trains: the control examples and, if they are few, shards of no device.

    Data that are files have no shards of other devices.
    """
    control = task.control_examples()
    found = [*control]
    for device in (f"d{first + i}" for i in range(FRESH_SHARDS if len(control) < FEW else 0)):
        with suppress(InputError):
            found += task.train_examples(device)
    return found


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def write_mean(snapshots: Iterable[Path], path: Path) -> None:
    """Write the mean model: the mean of the devices' copies of each block, with B = 0 for a missing copy.

    This is the mean of ΔW over devices, also if each device holds its own block only (`paper-literal`). The
    sum is in float64 and in the order of the paths.
    """
    total: dict[str, Tensor] = {}
    slots: dict[str, int] = {}
    found = sorted(snapshots)
    for snapshot in found:
        with safe_open(snapshot, framework="pt") as file:
            slots.update(json.loads(file.metadata()["slots"]))
            for name in sorted(file.keys()):
                copy = file.get_tensor(name).double()
                total[name] = total[name] + copy if name in total else copy
    means = {name: (tensor / len(found)).float() for name, tensor in total.items()}
    write_snapshot(path, means, slots, {"device": "mean", "round": "0", "tag": "mean"})
