"""Measurements of the loss on the own data: diagnosis, trials, Fisher factors. Each has its own batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

import torch

from coordinator_free.identifiers import BlockKey
from peers.learning.count_sketch import Sketcher
from peers.learning.diagnosis import Diagnosis, Options, diagnose
from peers.learning.kfac import FisherSteps
from peers.tasks.batches import batch_generator, sample_batch
from peers.tasks.encode import Encoded

if TYPE_CHECKING:
    import numpy as np

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
        self, adapter: Adapter, layout: ModelLayout, config: DeviceConfig, data: Encoded, device_id: str
    ) -> None:
        self._adapter, self._layout, self._config = adapter, layout, config
        self._data, self._device_id = data, device_id
        self._sketcher: Sketcher | None = None

    def batches(self, purpose: str, round: int, size: int = BATCH) -> Iterator[Encoded]:
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

    def diagnose(
        self, blocks: Mapping[BlockKey, Block], round: int, sketch: int, options: Options
    ) -> Diagnosis:
        """Energy, curvature and sketch of the gradients w.r.t. all `blocks` on one batch (diagnosis.py).

        sketch: numbers per group. Raises ValueError as `diagnosis.diagnose` does.
        """
        batch, draw = self._batch("diagnosis", round)
        if self._sketcher is None or self._sketcher.size != sketch:
            self._sketcher = Sketcher(self._config.seed, self._layout, sketch)
        model, scale = self._adapter.model, self._adapter.scale
        return diagnose(model, self._layout, scale, blocks, batch, self._sketcher, options, draw)

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
        if self._sketcher is not None:
            self._sketcher.forget_block(key)

    def _stream(self, purpose: str, round: int) -> np.random.Generator:
        return batch_generator(self._config.seed, f"{self._device_id}/{purpose}", round, 0)

    def _batch(self, purpose: str, round: int) -> tuple[Encoded, np.random.Generator]:
        """A batch of a round, and the rest of the random stream that drew it."""
        draw = self._stream(purpose, round)
        examples = min(self._config.data.batch, DIAGNOSED)
        return self._data.rows(sample_batch(self._data, examples, draw)), draw

    @torch.no_grad()
    def _loss(self, batch: Encoded) -> float:
        return float(self._adapter.loss(batch))
