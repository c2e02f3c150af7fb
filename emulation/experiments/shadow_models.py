"""What an attacker measures on the models of one run: losses on the pool, also after int4, and relearning."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from coordinator_free.identifiers import BlockKey
from emulation.analysis.records import Record
from emulation.experiments.attacks import relearned
from emulation.experiments.evaluation import write_mean
from emulation.scenario.schema import Scenario
from peers.learning.learner import Learner
from peers.models.loader import load_model
from peers.privacy_config import PrivacyConfig
from peers.storage.snapshots import SnapshotModel, write_snapshot
from peers.storage.tensor_file import load_tensors
from peers.tasks import Encoded, Example, encode, score_examples
from peers.tasks.score import evaluate
from transport.wire.tensor_codec import decode
from transport.wire.tensor_codec import encode as encode_tensor

MEAN, INT4 = "mean", "mean int4"
KNOWN = 0.9  # accuracy on the shown half at which an attacker has relearned it
STEPS = 5  # of relearning between two evaluations
MOST_STEPS = 200


class Attacker:
    """The base model, and the pool of facts of which the leaver had some."""

    def __init__(self, scenario: Scenario, pool: Sequence[Example]) -> None:
        self._scenario, self._pool = scenario, list(pool)
        loaded = load_model(scenario.model)
        self._model = SnapshotModel(loaded, scenario.device_config())
        self._encoded = encode(self._pool, loaded.tokenizer, scenario.data.max_length)

    def losses(self, snapshots: Mapping[str, Path], scratch: Path) -> dict[str, list[float]]:
        """The losses on the pool, in nats: of each device's model, of the mean model, of its int4 export."""
        mean, coarse = scratch / "mean.safetensors", scratch / "int4.safetensors"
        write_mean(snapshots.values(), mean)
        write_int4(mean, coarse)
        files = {**snapshots, MEAN: mean, INT4: coarse}
        return {name: self._losses(path) for name, path in sorted(files.items())}

    def _losses(self, snapshot: Path) -> list[float]:
        self._model.load(snapshot)
        found: list[float] = score_examples(self._model.model, self._encoded)[1].tolist()
        return found

    def relearn(self, snapshot: Path, chosen: Iterable[int]) -> Record:
        """Train a new block on half of the chosen facts of the pool, with the snapshot's blocks in place."""
        facts = [self._pool[i] for i in chosen]
        loaded, config = load_model(self._scenario.model), self._scenario.device_config()
        length = self._scenario.data.max_length
        shown, hidden = (encode(half, loaded.tokenizer, length) for half in (facts[::2], facts[1::2]))
        config = config.model_copy(update={"privacy": PrivacyConfig()})  # the attacker hides nothing
        learner = Learner(loaded, config, shown, "attacker")
        tensors, meta = load_tensors(snapshot)
        slots: dict[str, int] = json.loads(meta["slots"])
        for name in sorted({name.rpartition("/")[0] for name in tensors}):
            key = BlockKey.parse(name)
            learner.add_block(key, slots[name])
            for group in learner.groups:
                learner.write(key, group, tensors[f"{name}/{group}"])
        free = next(s for s in range(config.adapter.max_devices) if s not in slots.values())
        learner.set_own(BlockKey("attacker", 0), free)
        steps, accuracies = [0], [self._accuracies(learner, shown, hidden)]
        while steps[-1] < MOST_STEPS and accuracies[-1][0] < KNOWN:
            learner.train(steps[-1], STEPS, rehearse=False)
            steps.append(steps[-1] + STEPS)
            accuracies.append(self._accuracies(learner, shown, hidden))
        found = relearned(steps, [a for a, _ in accuracies], [b for _, b in accuracies], KNOWN)
        return {"steps": found.steps, "other": found.other}

    def _accuracies(self, learner: Learner, shown: Encoded, hidden: Encoded) -> tuple[float, float]:
        return evaluate(learner.model, shown).accuracy, evaluate(learner.model, hidden).accuracy


def write_int4(snapshot: Path, path: Path) -> None:
    """Write a snapshot as it is after an export in int4: rounding may bring back what training hid."""
    tensors, meta = load_tensors(snapshot)
    draw = np.random.Generator(np.random.Philox(key=0))
    coarse = {
        name: decode(encode_tensor(values, "int4", draw), "int4", *values.shape)
        for name, values in sorted(tensors.items())
    }
    write_snapshot(path, coarse, json.loads(meta["slots"]), meta)
