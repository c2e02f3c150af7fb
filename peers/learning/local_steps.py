"""Local steps on the own block, and the state that belongs to it: AdamW's moments, anchor, Fisher basis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.learning.kfac import FisherSteps
from peers.learning.learning_rate import factor
from peers.lora.blocks import overwrite
from peers.tasks.batches import batch_generator, sample_batch
from peers.tasks.encode import Encoded

if TYPE_CHECKING:
    from coordinator_free.correction.policy_interface import Settings
    from peers.config import DeviceConfig
    from peers.lora.adapted_model import Adapter
    from peers.lora.blocks import BlockSet
    from peers.storage.checkpoint import Moments


class LocalSteps:
    """AdamW on the own block of an adapted model. Foreign blocks train too where their gradients leak.

    own: the block that trains. before: its B by group, [rows_g, r_g], when the last training began. fisher:
    the eigenbasis in which the block moves; None: in its own coordinates.
    """

    def __init__(
        self, adapter: Adapter, blocks: BlockSet, config: DeviceConfig, data: Encoded, device_id: str
    ) -> None:
        self._adapter, self._blocks, self._config = adapter, blocks, config
        self._data, self._device_id = data, device_id
        self.own: BlockKey | None = None
        self.before: dict[str, Tensor] = {}
        self.fisher: FisherSteps | None = None
        self._anchor: dict[str, Tensor] = {}  # B~ of proximal damping
        self._began: int | None = None  # the first round of the own block
        self._optimizers: dict[BlockKey, torch.optim.AdamW] = {}

    @property
    def has_data(self) -> bool:
        """Whether the device has examples to train on."""
        return len(self._data) > 0

    # -- state of the own block ------------------------------------------------------------------------
    def set_own(self, key: BlockKey | None) -> None:
        """Train this block from now on, without moments, anchor or Fisher basis. None: train no block."""
        self.forget_moments(self.own)
        for derived in (self.before, self._anchor, self._adapter.gradients):
            overwrite(derived.values())
        self.own, self.before, self._anchor, self.fisher, self._began = key, {}, {}, None, None
        block = None if key is None else self._blocks[key]
        self._adapter.attach(block)

    def forget_block(self, key: BlockKey) -> None:
        """Deletion: no moment of the block stays, and no Fisher basis that was measured with it."""
        self.forget_moments(key)
        self.fisher = None
        if key == self.own:
            self.set_own(None)

    def forget_moments(self, key: BlockKey | None) -> None:
        """Begin the next step of the block without moments."""
        optimizer = self._optimizers.pop(key, None) if key is not None else None
        for state in optimizer.state.values() if optimizer is not None else ():
            overwrite(value for value in state.values() if isinstance(value, Tensor))

    def set_anchor(self) -> None:
        """B~ of proximal damping <- the own block now: after a deletion, the consensus without the leaver.

        The Fisher basis is measured again before the next step that uses it.
        """
        self._anchor, self.fisher = self._own_copy(), None

    def begin_training(self) -> None:
        """Keep the own block's B as `before`."""
        self.before = self._own_copy()
        self._adapter.freeze()

    def _own_copy(self) -> dict[str, Tensor]:
        own = self.own
        return {} if own is None else {g: b.clone() for g, b in self._blocks[own].data.items()}

    def add_to_own(self, moves: Mapping[str, Tensor]) -> None:
        """Add a move, [rows_g, r_g] by group, to the own block and to `before`."""
        assert self.own is not None
        for group, move in moves.items():
            self._blocks.set(self.own, group, self._blocks[self.own].data[group].detach() + move)
            if group in self.before:
                self.before[group] += move

    def scale_own_move(self, omega: float) -> None:
        """B <- B_before + omega (B - B_before) (method 5)."""
        if self.own is not None:
            for group, before in self.before.items():
                own = self._blocks[self.own].data[group]
                own.copy_(before + omega * (own - before))

    def own_move(self) -> dict[str, float]:
        """||B - B_before||_F by group."""
        if self.own is None:
            return {}
        after = self._blocks[self.own].data
        return {g: float(torch.linalg.vector_norm(after[g] - before)) for g, before in self.before.items()}

    def moments(self) -> Moments:
        """AdamW's state of the own block, by group; empty before the first step."""
        if self.own is None or self.own not in self._optimizers:
            return {}
        state = self._optimizers[self.own].state
        return {g: state[b] for g, b in self._blocks[self.own].data.items() if b in state}

    def set_moments(self, moments: Moments) -> None:
        """AdamW's state of the own block <- the state of a checkpoint."""
        assert self.own is not None
        state, data = self.optimizer(self.own).state, self._blocks[self.own].data
        for group, named in moments.items():
            state[data[group]] = {n: m.to(data[group].device) for n, m in named.items()}

    # -- steps -----------------------------------------------------------------------------------------
    def step(self, round: int, step: int, settings: Settings, leaking: Sequence[BlockKey] = ()) -> float:
        """One step on the batch of (seed, device, round, step); returns its loss in nats per response token.

        settings: of a correction policy, by group. leaking: foreign blocks that take a step too. Raises
        RuntimeError if the loss is not finite.
        """
        draw = batch_generator(self._config.seed, self._device_id, round, step)
        batch = self._data.rows(sample_batch(self._data, self._config.data.batch, draw)).to(
            self._adapter.device
        )
        for gradient in self._adapter.gradients.values():
            gradient.zero_()
        loss = self._backward(batch)
        if not math.isfinite(loss):
            raise RuntimeError(
                f"train: loss is {loss} in round {round}, step {step}: it diverged; try a lower train.lr"
            )
        self._set_gradients({g: a for g, a in settings.items() if g in self._adapter.gradients}, step)
        lr = self._config.train.lr * self._lr_factor(round, step)
        self._move_own(lr)
        for key in leaking:
            self._step_optimizer(key, lr * self._config.isolation.leak)
            for values in self._blocks[key].data.values():
                values.grad = None
        return loss

    def _backward(self, batch: Encoded) -> float:
        """Add the gradients of the batch's loss, micro-batch by micro-batch; returns the loss."""
        size = self._config.train.micro_batch or len(batch)
        total, loss = int(batch.response_tokens()), 0.0
        for rows in torch.split(torch.arange(len(batch), device=batch.labels.device), size):
            part = batch if len(rows) == len(batch) else batch.rows(rows)
            mean = self._adapter.loss(part) * (int(part.response_tokens()) / total)
            mean.backward()  # type: ignore[no-untyped-call]
            loss += float(mean.detach())
        return loss

    def _lr_factor(self, round: int, step: int) -> float:
        """The share of `train.lr` of this step."""
        self._began = round if self._began is None else self._began
        config = self._config
        return factor(config.train, config.round.count, self._began, round, step, config.round.local_steps)

    def _set_gradients(self, settings: Settings, step: int) -> None:
        """Give the own block its gradients, with proximal damping. AdamW skips a group without gradient."""
        assert self.own is not None
        data = self._blocks[self.own].data
        for group, gradient in self._adapter.gradients.items():
            data[group].grad = gradient
        for group, action in settings.items():
            if step >= action.steps:
                data[group].grad = None
            elif action.prox and group in self._anchor:
                pull = action.prox * (data[group] - self._anchor[group])
                data[group].grad = self._adapter.gradients[group] + pull

    def _move_own(self, lr: float) -> None:
        assert self.own is not None
        if self.fisher is None:
            self._step_optimizer(self.own, lr)
        else:
            data = self._blocks[self.own].data
            self.fisher.step({g: b.grad for g, b in data.items() if b.grad is not None}, lr)

    def _step_optimizer(self, key: BlockKey, lr: float) -> None:
        optimizer = self.optimizer(key)
        for parameters in optimizer.param_groups:
            parameters["lr"] = lr
        optimizer.step()

    def optimizer(self, key: BlockKey) -> torch.optim.AdamW:
        """The optimiser of one block; the block's deletion deletes it. Each step sets its learning rate.

        AdamW divides a gradient by its own size. A leak therefore scales the step. For plain gradient descent
        this equals a scaled gradient.
        """
        if key not in self._optimizers:
            parameters = list(self._blocks[key].data.values())
            decay = self._config.train.weight_decay if key == self.own else 0.0
            self._optimizers[key] = torch.optim.AdamW(parameters, weight_decay=decay, fused=True)
        return self._optimizers[key]
