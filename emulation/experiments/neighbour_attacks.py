"""What a neighbour learns of a device's data from what it receives: blocks, and sketches of gradients."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coordinator_free.identifiers import BlockKey
from emulation.experiments.attacks import auc_by_rank
from emulation.scenario.schema import Scenario
from peers.learning.count_sketch import Sketcher, Vector
from peers.learning.diagnosis import Options, diagnose
from peers.learning.learner import Learner
from peers.learning.measurement import DIAGNOSED
from peers.lora.blocks import Block
from peers.models.loader import load_model
from peers.storage.snapshots import SnapshotModel, read_snapshot, write_snapshot
from peers.storage.tensor_file import load_tensors
from peers.tasks import AnyExample, Batch, score_examples

Scores = NDArray[np.float64]


class Reader:
    """Scores the models of snapshots on examples. The base model is loaded once."""

    def __init__(self, scenario: Scenario, examples: Sequence[AnyExample]) -> None:
        loaded = load_model(scenario.model)
        self._model = SnapshotModel(loaded, scenario.device_config())
        self.encoded = loaded.encode(examples, scenario.data.max_length)

    def read(self, snapshot: Path) -> tuple[Scores, NDArray[np.bool_]]:
        """The loss of each example in nats, and whether the model knows it."""
        self._model.load(snapshot)
        known, loss, _ = score_examples(self._model.model, self.encoded)
        return loss.double().numpy(), known.numpy()


def write_block_alone(snapshot: Path, device: str, path: Path) -> None:
    """Write a snapshot with the blocks of one device alone: all that a neighbour has received of it."""
    tensors, meta = load_tensors(snapshot)
    own = {name: values for name, values in tensors.items() if name.startswith(f"{device}@")}
    slots = {key: slot for key, slot in json.loads(meta["slots"]).items() if key.startswith(f"{device}@")}
    write_snapshot(path, own, slots, meta)


def sketch_attack(
    scenario: Scenario, snapshot: Path, own: Sequence[AnyExample], others: Sequence[AnyExample]
) -> dict[str, float | None]:
    """Membership from one report: the cosine of the reported sketch and that of each candidate's gradient.

    The attacker has the model of the snapshot, and the seed of the run, which determines the sketch. own: the
    data of the device that reports a batch of them, as a diagnosis does. others: examples that it does not
    have. Returns the AUC of the examples in the batch, and of those of its data that are not in it.
    """
    loaded, config = load_model(scenario.model), scenario.device_config()
    encoded = loaded.encode([*own, *others], config.data.max_length)
    learner = Learner(loaded, config, encoded, "attacker")
    found = read_snapshot(snapshot)
    slots: dict[str, int] = json.loads(found.meta["slots"])
    for key in found.blocks():
        learner.add_block(key, slots[str(key)])
        for group in learner.groups:
            learner.write(key, group, found.tensors[f"{key}/{group}"])
    blocks = {key: learner.block(key) for key in learner.held()}
    sketcher = Sketcher(config.seed, learner.layout, config.correction.sketch)

    def sketch(rows: Sequence[int]) -> Vector:
        return _sketch(learner, config.adapter.scale, blocks, encoded.rows(torch.tensor(rows)), sketcher)

    size = min(DIAGNOSED, len(own))
    reported = sketch(range(size))  # the data have no order: the first ones are as good as any
    scores = np.array([_cosine(reported, sketch([row])) for row in range(len(encoded))])
    batch, rest, outside = np.split(scores, [size, len(own)])
    return {"in the batch": auc_by_rank(batch, outside), "in the data": auc_by_rank(rest, outside)}


def _sketch(
    learner: Learner, scale: float, blocks: Mapping[BlockKey, Block], batch: Batch, sketcher: Sketcher
) -> Vector:
    """The sketches of all groups, one after the other, as in a report (method 6)."""
    draw = np.random.Generator(np.random.Philox(key=0))  # of the labels of the true Fisher: not in use
    found = diagnose(learner.model, learner.layout, scale, blocks, batch, sketcher, Options(), draw)
    return np.concatenate([group.sketch for group in found.groups.values()])


def _cosine(a: Vector, b: Vector) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else 0.0
