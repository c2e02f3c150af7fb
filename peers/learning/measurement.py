"""Measurements of the loss on the own data: diagnosis, trials, Fisher factors. Each has its own batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from coordinator_free.correction.policies import SCHEDULES
from coordinator_free.correction.residuals import copies_size
from coordinator_free.identifiers import BlockKey
from peers.learning.backward_pass import passes
from peers.learning.count_sketch import Sketcher, Vector
from peers.learning.diagnosis import Diagnosis, Options, diagnose
from peers.learning.foreign_inputs import pack_moments, second_moments
from peers.learning.kfac import FisherSteps
from peers.learning.loss_floor import LossFloor
from peers.tasks.batch import Batch
from peers.tasks.batches import batch_generator, sample_batch
from peers.unlearning.ewc import ElasticWeights, squared_shares

if TYPE_CHECKING:
    from coordinator_free.correction.policy_interface import Settings
    from peers.config import DeviceConfig
    from peers.learning.local_steps import LocalSteps
    from peers.lora.adapted_model import Adapter
    from peers.lora.blocks import Block
    from peers.lora.layout import ModelLayout

Move = TypeVar("Move")  # the name of a trial
TRIED_WORST = 1e3  # nats: the loss rises by this much in a trial that diverged
DIAGNOSED = 16  # examples at most: a diagnosis then costs about as much as a local step (method 6: <= 5 %)
EXAMPLES, BATCH = 128, 32  # of a refit or of Fisher factors: examples at most, and examples in one pass


class Measurement:
    """Measures an adapted model on the own data. The caller places the blocks in the model before."""

    def __init__(
        self, adapter: Adapter, layout: ModelLayout, config: DeviceConfig, data: Batch, device_id: str
    ) -> None:
        self._adapter, self._layout, self._config = adapter, layout, config
        self._data, self._device_id = data, device_id
        self._sketchers: tuple[Sketcher, Sketcher] | None = None  # of gradients, of copies
        self.floor = LossFloor(adapter.model.base_model.model, data)

    def batches(self, purpose: str, round: int, size: int = BATCH) -> Iterator[Batch]:
        """EXAMPLES of the own data at most, in batches of `size`. `purpose` names their random stream."""
        draw = self._stream(purpose, round)
        drawn = sample_batch(self._data, min(EXAMPLES, len(self._data)), draw)
        return (self._data.rows(part).to(self._adapter.device) for part in torch.split(drawn, size))

    def fisher_steps(self, own: Block, round: int) -> FisherSteps:
        """Steps of `own` in the eigenbasis of its Fisher information. Raises RuntimeError as FisherSteps."""
        train = self._config.train
        size = min(BATCH, self._config.data.batch, train.micro_batch or BATCH)
        batches = self.batches("fisher", round, size)
        return FisherSteps(self._adapter.model, self._layout, own, batches, train.weight_decay)

    def elastic_weights(self, own: Block, anchor: Mapping[str, Tensor], round: int) -> ElasticWeights:
        """The empirical Fisher information of `own`, its diagonal, on the own data, for EWC."""
        found = {group: torch.zeros_like(values) for group, values in own.data.items()}
        count = 0
        for batch in self.batches("ewc", round):
            count += len(batch)
            for name, (x, d) in passes(self._adapter.model, self._layout, batch).items():
                group = self._layout.by_name[name].group
                shares = squared_shares(own.features(name, x.float()), d, self._adapter.scale)
                found[group][self._layout.slices(group)[name]] += shares
        importance = {group: values / max(1, count) for group, values in found.items()}
        return ElasticWeights(importance, dict(anchor), self._config.correction.ewc)

    def diagnose(
        self, blocks: Mapping[BlockKey, Block], round: int, sketch: int, options: Options
    ) -> Diagnosis:
        """Energy, curvature and sketch of the gradients w.r.t. all `blocks` on one batch (diagnosis.py).

        sketch: numbers per group. Raises ValueError as `diagnosis.diagnose` does.
        """
        batch, draw = self._batch("diagnosis", round)
        if self._sketchers is None or self._sketchers[0].size != sketch:
            sizes = sketch, copies_size(sketch)
            first, second = (Sketcher(self._config.seed, self._layout, size) for size in sizes)
            self._sketchers = first, second
        gradients, copies = self._sketchers
        model, scale = self._adapter.model, self._adapter.scale
        sampled = replace(options, population=len(self._data))
        found = diagnose(model, self._layout, scale, blocks, batch, gradients, sampled, draw)
        gap = max(found.loss - self.floor.mean(batch), 0.0)
        return replace(found, gap=gap, copies=_copies(copies, self._layout, blocks))

    def gaps(self, local: LocalSteps, round: int, losses: Sequence[float]) -> tuple[float, ...]:
        """The losses of a round's steps above the floors of their batches, if a policy measures."""
        if self._config.correction.policy in SCHEDULES:
            return ()
        floors = (self.floor.mean(local.batch(round, step)) for step in range(len(losses)))
        return tuple(loss - floor for loss, floor in zip(losses, floors, strict=True))

    def loss(self, round: int) -> float:
        """The loss on the batch of a round's diagnosis."""
        return self._loss(self._batch("diagnosis", round)[0].to(self._adapter.device))

    def second_moments(self, blocks: Mapping[BlockKey, Block], round: int) -> dict[BlockKey, bytes]:
        """The packed second moments of the own inputs in the bases of these blocks (foreign_inputs.py)."""
        batches = self.batches("moments", round)
        found = second_moments(self._adapter.model, self._layout, blocks, batches)
        return {key: pack_moments(moments, self._layout) for key, moments in found.items()}

    def trials(
        self, local: LocalSteps, own: Block, round: int, tried: Mapping[Move, Settings]
    ) -> dict[Move, float]:
        """Train a round with each of the settings. Returns the drop of the loss on one batch, in nats.

        -TRIED_WORST: the trial diverged. Block, moments and anchor are restored after each trial.
        """
        assert local.own is not None
        optimizer = local.optimizer(local.own)
        kept = {group: b.clone() for group, b in own.data.items()}
        batch = self._batch("trial", round)[0].to(self._adapter.device)
        before, drops = self._loss(batch), {}
        for move, settings in tried.items():
            state = copy.deepcopy(optimizer.state_dict())
            try:
                for step in range(max(action.steps for action in settings.values())):
                    local.step(round, step, settings)
                drop = before - self._loss(batch)
            except RuntimeError:  # it diverged
                drop = -TRIED_WORST
            drops[move] = drop if math.isfinite(drop) else -TRIED_WORST
            for group, values in kept.items():
                own.data[group].copy_(values)
            optimizer.load_state_dict(state)
        return drops

    def forget_block(self, key: BlockKey) -> None:
        """Deletion: free the sketch that was drawn for the block."""
        for sketcher in self._sketchers or ():
            sketcher.forget_block(key)

    def _stream(self, purpose: str, round: int) -> np.random.Generator:
        return batch_generator(self._config.seed, f"{self._device_id}/{purpose}", round, 0)

    def _batch(self, purpose: str, round: int) -> tuple[Batch, np.random.Generator]:
        """A batch of a round, and the rest of the random stream that drew it."""
        draw = self._stream(purpose, round)
        examples = min(self._config.data.batch, DIAGNOSED)
        return self._data.rows(sample_batch(self._data, examples, draw)), draw

    @torch.no_grad()
    def _loss(self, batch: Batch) -> float:
        return float(self._adapter.loss(batch))


def _copies(sketcher: Sketcher, layout: ModelLayout, blocks: Mapping[BlockKey, Block]) -> dict[str, Vector]:
    """One sketch of all copies by group. Differences of sketches are sketches of differences."""
    return {
        group: np.sum([sketcher.sketch(key, group, b.data[group]) for key, b in blocks.items()], axis=0)
        for group in layout.groups
    }
