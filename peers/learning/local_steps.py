"""Local steps on the own block, and the state that belongs to it: AdamW's moments, anchor, Fisher basis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.learning.foreign_inputs import Moments as InputMoments
from peers.learning.kfac import FisherSteps
from peers.learning.learning_rate import factor
from peers.learning.privacy_account import FILE, account_path
from peers.learning.private_gradients import PrivateGradients
from peers.lora.blocks import overwrite
from peers.tasks.batch import Batch
from peers.tasks.batches import batch_generator, sample_batch
from peers.tasks.encode import IGNORED
from peers.unlearning.ewc import ElasticWeights
from peers.unlearning.projection import without_way_back

if TYPE_CHECKING:
    from coordinator_free.correction.policy_interface import Settings
    from peers.config import DeviceConfig
    from peers.lora.adapted_model import Adapter
    from peers.lora.blocks import BlockSet
    from peers.storage.checkpoint import Moments


@dataclass(frozen=True)
class TrainResult:
    """losses: one a step, nats per response token; nan for an empty sample. seconds: wall time. gaps: losses
    above their floor, for a policy that measures; otherwise empty. epsilon: the privacy that the device has
    spent so far; None: it trains without (privacy_account.py)."""

    losses: tuple[float, ...]
    seconds: float
    gaps: tuple[float, ...] = ()
    epsilon: float | None = None

    @property
    def steps(self) -> int:
        return len(self.losses)

    @property
    def loss(self) -> float:
        """Mean over the steps; nan without steps."""
        known = [loss for loss in self.losses if not math.isnan(loss)]
        return sum(known) / len(known) if known else math.nan


class LocalSteps:
    """AdamW on the own block of an adapted model. Foreign blocks train too where their gradients leak.

    own: the block that trains. before: its B by group, [rows_g, r_g], when the last training began. fisher:
    the eigenbasis in which the block moves; None: in its own coordinates. ewc: the penalty of a baseline.
    """

    def __init__(
        self, adapter: Adapter, blocks: BlockSet, config: DeviceConfig, data: Batch, device_id: str
    ) -> None:
        self._adapter, self._blocks, self._config = adapter, blocks, config
        self._data, self._device_id = data, device_id
        self.own: BlockKey | None = None
        self.before: dict[str, Tensor] = {}
        self.fisher: FisherSteps | None = None
        self.ewc: ElasticWeights | None = None
        self._anchor: dict[str, Tensor] = {}  # B~ of proximal damping
        self._inputs: dict[BlockKey, InputMoments] = {}  # of other devices, by their own block
        self._inputs_known: tuple[FisherSteps | None, int] = (None, 0)  # the basis that knows them
        self._inputs_received = 0
        self._ways_back: dict[BlockKey, Mapping[str, Tensor]] = {}  # of projected steps, by deleted block
        self._began: int | None = None  # the first round of the own block
        self._optimizers: dict[BlockKey, torch.optim.AdamW] = {}
        self._private: PrivateGradients | None = None
        self._booked = range(0)  # the numbers of the steps of this training in the account of privacy
        if config.privacy.on and len(data):
            self._private = PrivateGradients(adapter, blocks.layout, config, data, device_id)

    def granted(self, steps: int) -> int:
        """How many of these steps the device takes: none without data, and, with privacy, as many as its
        account allows. They are booked there now."""
        if self._private is None:
            return steps if len(self._data) else 0
        self._booked = self._private.account.book(steps)
        return len(self._booked)

    @property
    def epsilon(self) -> float | None:
        """The privacy that the device has spent; None: it trains without."""
        return None if self._private is None else self._private.account.epsilon

    def keep_account(self, folder: Path) -> None:
        """Keep the account of privacy in the folder of the device's records. It goes on from the file that is
        there, or else from that of the run whose checkpoint this one resumes."""
        if self._private is not None:
            resumed = self._config.checkpoint.resume
            earlier = [] if resumed is None else [account_path(Path(resumed), self._device_id)]
            self._private.account.keep_in(folder / FILE, *earlier)

    # -- state of the own block ------------------------------------------------------------------------
    def set_own(self, key: BlockKey | None) -> None:
        """Train this block from now on, without moments, anchor or Fisher basis. None: train no block."""
        self.forget_moments(self.own)
        for derived in (self.before, self._anchor, self._adapter.gradients):
            overwrite(derived.values())
        self.own, self.before, self._anchor, self.fisher, self.ewc = key, {}, {}, None, None
        self._began = None
        self.end_correction()
        block = None if key is None else self._blocks[key]
        self._adapter.attach(block)

    def forget_block(self, key: BlockKey) -> None:
        """Deletion: no moment of the block stays, no second moments that its owner has sent, and no Fisher
        basis that was measured with it."""
        self.forget_moments(key)
        overwrite(self._inputs.pop(key, {}).values())
        self.fisher = self.ewc = None
        if key == self.own:
            self.set_own(None)

    def know_inputs(self, source: BlockKey, moments: InputMoments) -> None:
        """Keep the second moments of the inputs of the owner of `source`."""
        self._inputs[source] = moments
        self._inputs_received += 1

    def use_inputs(self) -> None:
        """Let the Fisher basis, if there is one, know all second moments that have been received."""
        known = self.fisher, self._inputs_received
        if self.fisher is not None and self._inputs and known != self._inputs_known:
            self.fisher.know_others([moments for _, moments in sorted(self._inputs.items())])
            self._inputs_known = known

    def forget_moments(self, key: BlockKey | None) -> None:
        """Begin the next step of the block without moments."""
        optimizer = self._optimizers.pop(key, None) if key is not None else None
        for state in optimizer.state.values() if optimizer is not None else ():
            overwrite(value for value in state.values() if isinstance(value, Tensor))

    def set_anchor(self, consensus: Mapping[str, Tensor]) -> None:
        """B~ of proximal damping <- the consensus about the own block, [rows_g, r_g] by group; for a group
        without one, the block as it is now.

        The Fisher basis and the weights of EWC are measured again before the next step that uses them.
        """
        own = self._own_copy()
        self._anchor = {g: consensus[g].to(b) if g in consensus else b for g, b in own.items()}
        self.fisher = self.ewc = None

    def left_out(self, foreign: Sequence[BlockKey], round: int, step: int) -> tuple[BlockKey, ...]:
        """Departure rehearsal: a share of the steps leaves out exactly one random foreign block."""
        share = self._config.train.rehearsal
        if not foreign or not share:
            return ()
        # A stream of its own: batches are the same with and without rehearsal.
        draw = batch_generator(self._config.seed, f"{self._device_id}/rehearsal", round, step)
        return (foreign[int(draw.integers(len(foreign)))],) if draw.random() < share else ()

    def bar_way_back(self, gone: BlockKey, way: Mapping[str, Tensor]) -> None:
        """Take no step along `way`, [rows_g, r_g] by group, until the correction ends (projection.py)."""
        self._ways_back[gone] = way

    def end_correction(self) -> None:
        """Forget what holds in a correction only: the weights of EWC, and the ways back."""
        overwrite(values for way in self._ways_back.values() for values in way.values())
        self._ways_back, self.ewc = {}, None

    @property
    def anchor(self) -> dict[str, Tensor]:
        """B~ by group, [rows_g, r_g]; empty before the first correction."""
        return self._anchor

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
    def batch(self, round: int, step: int) -> Batch:
        """The batch of (seed, device, round, step)."""
        draw = batch_generator(self._config.seed, self._device_id, round, step)
        rows = self._data.rows(sample_batch(self._data, self._config.data.batch, draw))
        return rows.to(self._adapter.device)

    def step(self, round: int, step: int, settings: Settings, leaking: Sequence[BlockKey] = ()) -> float:
        """One step on the batch of (seed, device, round, step); returns its loss in nats per response token.

        settings: of a correction policy, by group. leaking: foreign blocks that take a step too. Raises
        RuntimeError if the loss is not finite. With privacy the sample is another one, and no loss raises
        (private_gradients.py).
        """
        assert self.own is not None
        if self._private is not None:
            loss = self._private.step(self._blocks[self.own], self._booked[step])
        else:
            loss = self._add_gradients(round, step)
        self._set_gradients({g: a for g, a in settings.items() if g in self._adapter.gradients}, step)
        lr = self._config.train.lr * self._lr_factor(round, step)
        self._move_own(lr)
        for key in leaking:
            self._step_optimizer(key, lr * self._config.isolation.leak)
            for values in self._blocks[key].data.values():
                values.grad = None
        return loss

    def _add_gradients(self, round: int, step: int) -> float:
        """`adapter.gradients` <- those of the step's batch; returns its loss."""
        for gradient in self._adapter.gradients.values():
            gradient.zero_()
        loss = self._backward(self.batch(round, step))
        if not math.isfinite(loss):
            raise RuntimeError(
                f"train: loss is {loss} in round {round}, step {step}: it diverged; try a lower train.lr"
            )
        return loss

    def _backward(self, batch: Batch) -> float:
        """Add the gradients of the batch's loss, micro-batch by micro-batch; returns the loss."""
        size = self._config.train.micro_batch or len(batch)
        counted, loss = (batch.wanted() != IGNORED).sum(dim=1), 0.0
        for rows in torch.split(torch.arange(len(batch), device=counted.device), size):
            part = batch if len(rows) == len(batch) else batch.rows(rows)
            mean = self._adapter.loss(part) * (int(counted[rows].sum()) / int(counted.sum()))
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
        if self.ewc is not None:
            for group, values in data.items():
                if values.grad is not None:
                    values.grad = values.grad + self.ewc.pull(group, values.detach())

    def _move_own(self, lr: float) -> None:
        assert self.own is not None
        before = self._own_copy() if self._ways_back else {}
        if self.fisher is None:
            self._step_optimizer(self.own, lr)
        else:
            data = self._blocks[self.own].data
            self.fisher.step({g: b.grad for g, b in data.items() if b.grad is not None}, lr)
        for group, old in before.items():
            values, ways = self._blocks[self.own].data[group], self._ways_back.values()
            values.copy_(old + without_way_back(values - old, [way[group] for way in ways]))

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
