"""What a device knows and learns: its blocks, the model that computes with them, local steps on its data.

Not thread-safe: one thread at a time.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.errors import InputError
from peers.learning.count_sketch import Sketcher
from peers.learning.diagnosis import Diagnosis, Options, diagnose
from peers.learning.kfac import FisherSteps
from peers.lora.adapted_model import Adapter
from peers.lora.bases import Bases, Recipe
from peers.lora.blocks import Block, BlockSet
from peers.lora.fingerprint import Fingerprint
from peers.storage.adapter_folder import blocks_sha256, saved_blocks, write_adapter
from peers.storage.checkpoint import Checkpoint, load, save
from peers.storage.snapshots import SnapshotModel, write_snapshot
from peers.tasks.batches import batch_generator, sample_batch
from peers.unlearning.handover_refit import BATCH, EXAMPLES, handover_refit

if TYPE_CHECKING:
    import numpy as np

    from coordinator_free.correction.policy_interface import Settings
    from peers.config import DeviceConfig
    from peers.models.loader import LoadedModel
    from peers.tasks.encode import Encoded

__all__ = ["DeletionReceipt", "Learner", "SnapshotModel", "TrainResult"]
PAPER_LITERAL = "paper-literal"
Move = TypeVar("Move")  # what a trial is called
TRIED_WORST = 1e3  # nats: a trial that diverged
DIAGNOSED = 16  # examples at most: a diagnosis then costs about what a local step does (method 6: <= 5 %)


@dataclass(frozen=True)
class TrainResult:
    """losses: of each step, nats per response token. seconds: wall time."""

    losses: tuple[float, ...]
    seconds: float

    @property
    def steps(self) -> int:
        return len(self.losses)

    @property
    def loss(self) -> float:
        """Mean over the steps; nan for no steps."""
        return sum(self.losses) / self.steps if self.losses else math.nan


@dataclass(frozen=True)
class DeletionReceipt:
    """Hashes of what an export would have held just before and just after a deletion."""

    sha256_before: str
    sha256_after: str


class Learner:
    """One device's model; `loaded.model` is changed in place.

    Every block that is held is part of the model, except in `paper-literal`: there the model is the base with
    the own block alone, and foreign blocks are only kept.

    Raises InputError if the configuration does not fit the model (target modules, ranks, slots).
    """

    def __init__(
        self, loaded: LoadedModel, config: DeviceConfig, encoded_train: Encoded, device_id: str
    ) -> None:
        self._config, self._encoded, self._device_id = config, encoded_train, device_id
        self._recipe = Recipe.make(loaded, config)
        self.layout = self._recipe.layout
        self.groups = self.layout.groups
        bases = Bases(self._recipe)
        self.fingerprint = Fingerprint.make(bases)
        self._literal = config.mixing.mode == PAPER_LITERAL
        self._device = next(loaded.model.parameters()).device
        self._blocks = BlockSet(bases, self._device)
        self._adapter = Adapter(loaded.model, self.layout, self._recipe.scale)
        self._own: BlockKey | None = None
        self._before: dict[str, Tensor] = {}  # the own block when the last train() began
        self._anchor: dict[str, Tensor] = {}  # B~ of proximal damping
        self._fisher: FisherSteps | None = None
        self._sketcher: Sketcher | None = None
        self._optimizers: dict[BlockKey, torch.optim.AdamW] = {}
        self._placed: tuple[bool, tuple[BlockKey, ...]] | None = None  # None: what is placed is out of date
        resume = config.checkpoint.resume
        self._begins_with = (
            Checkpoint() if resume is None else load(Path(resume), device_id, self.fingerprint)
        )

    # -- blocks ----------------------------------------------------------------------------------------
    def has(self, key: BlockKey) -> bool:
        return key in self._blocks

    def held(self) -> list[BlockKey]:
        """The blocks that are held, in a fixed order."""
        return self._blocks.keys()

    def difference(self, fingerprint: Mapping[str, Any]) -> str | None:
        """What another device's fingerprint, as it came over the wire, differs in; None if in nothing."""
        try:
            return self.fingerprint.difference(Fingerprint.from_dict(fingerprint))
        except InputError as error:
            return str(error)

    def resumes(self) -> dict[str, int]:
        """Slot by device: whose blocks a checkpoint holds that this device begins with."""
        return dict(self._begins_with.slots)

    def add_block(self, key: BlockKey, slot: int, resume: bool = False) -> None:
        """Hold another device's block, at B = 0 or as a checkpoint has it.

        Raises ValueError if it is held already.
        """
        self._blocks.add(key, slot)
        if resume:
            self._resume(key)
        self._outdate()

    def _resume(self, key: BlockKey) -> None:
        for group, values in self._begins_with.take(key.device).items():
            self._blocks.set(key, group, values)

    def set_own(self, key: BlockKey, slot: int, carry: BlockKey | None = None, resume: bool = False) -> None:
        """Train this block from now on: at B = 0, with the values of `carry`, an earlier one on that slot, or
        as a checkpoint has it.

        The optimiser starts anew, but for a checkpoint, which holds its moments. The block that was trained
        before stays, frozen, until it is deleted.
        """
        block = self._blocks.add(key, slot)
        if carry is not None and carry in self._blocks:
            for group, values in self._blocks[carry].data.items():
                self._blocks.set(key, group, values)
        if self._own is not None:
            self._optimizers.pop(self._own, None)
        self._own, self._before, self._anchor, self._fisher = key, {}, {}, None
        if resume:
            self._resume(key)
            optimizer = self._optimizer(key)
            for group, moments in self._begins_with.moments.items():
                optimizer.state[block.data[group]] = {n: m.to(self._device) for n, m in moments.items()}
        self._adapter.attach(block)
        self._outdate()

    def delete_block(self, key: BlockKey, refit: float = 0.0) -> DeletionReceipt:
        """Forget a block: its values, its optimiser's moments, its share of the weights.

        refit: share of the block's output on the own data that the own block takes over (handover_refit.py).
        `paper-literal` also applies the leave projection as printed, dW <- dW (I - A_u A_u^T), to the own dW,
        which removes next to nothing. Raises KeyError if the block is not held.
        """
        before = self.sha256()
        if refit and self._own is not None and key != self._own:
            self._refit(self._own, key, refit)
        basis = self._blocks[key].bases
        self._blocks.delete(key)
        self._optimizers.pop(key, None)
        self._fisher = None  # measured with the block in the model
        if self._sketcher is not None:
            self._sketcher.forget(key)
        if key == self._own:
            self._own, self._before, self._anchor = None, {}, {}
            self._adapter.attach(None)
        elif self._literal:
            self._project_out(basis)
        self._outdate()
        return DeletionReceipt(before, self.sha256())

    def _refit(self, own: BlockKey, gone: BlockKey, share: float) -> None:
        batches, block = self._own_batches(f"handover/{gone}", 0, BATCH), self._blocks[own]
        moves = handover_refit(self._adapter.model, self.layout, block, self._blocks[gone], batches)
        for group, move in moves.items():
            self._blocks.set(own, group, block.data[group].detach() + share * move)
            if group in self._before:
                self._before[group] += share * move

    def _own_batches(self, what: str, round: int, size: int) -> Iterator[Encoded]:
        """EXAMPLES of the own data at most, drawn for a measurement of the model with all blocks in it."""
        draw = batch_generator(self._config.seed, f"{self._device_id}/{what}", round, 0)
        drawn = sample_batch(self._encoded, min(EXAMPLES, len(self._encoded)), draw)
        self._place(())
        return (self._encoded.take(part).to(self._device) for part in torch.split(drawn, size))

    def _project_out(self, gone: Mapping[str, Tensor]) -> None:
        """Eq. (15) on s B A^T, read out in A again: B <- B (I - G G^T) with G = A^T A_u."""
        if self._own is None:
            return
        for name, basis in self._blocks[self._own].bases.items():
            b, overlap = self._blocks.part(self._own, name), basis.T @ gone[name]
            b -= b @ overlap @ overlap.T

    def read(self, key: BlockKey, group: str) -> Tensor:
        """B_u of a group, a float32 copy on the CPU, [rows_g, r_g]. Raises KeyError if it is not held."""
        return self._blocks[key].data[group].detach().to("cpu", copy=True)

    def write(self, key: BlockKey, group: str, values: Tensor) -> None:
        """B_u of a group <- values. Raises KeyError if it is not held, ValueError for another shape.

        The own block trains on from there, with the moments that it has.
        """
        self._blocks.set(key, group, values)
        if key != self._own:
            self._outdate()

    def scale_own_move(self, omega: float) -> None:
        """B <- B_before + omega (B - B_before), B_before from the start of the last train() (method 5)."""
        if self._own is None:
            return
        for group, before in self._before.items():
            own = self._blocks[self._own].data[group]
            own.copy_(before + omega * (own - before))

    # -- training --------------------------------------------------------------------------------------
    @property
    def model(self) -> Any:
        """The PEFT model as the device computes with it now."""
        self._place(())
        return self._adapter.model

    def train(
        self,
        round: int,
        steps: int,
        rehearse: bool,
        settings: Settings | None = None,
        fisher: bool = False,
    ) -> TrainResult:
        """`steps` local steps of AdamW on the own block; its moments last over rounds.

        Step t draws its batch from (seed, device, round, t) alone. With `isolation.leak` > 0 foreign copies
        move too. rehearse: `train.rehearsal` applies. settings: of a correction policy, by group: how many of
        the steps move the group, and lambda_g. fisher: the own block moves in the eigenbasis of its Fisher
        information, measured in the first such round. Raises RuntimeError without an own block or if the loss
        is not finite.
        """
        own = self._own
        if own is None:
            raise RuntimeError("train: this device has no block of its own yet")
        start = time.perf_counter()
        self._begins_with.clear()
        self._before = {g: b.clone() for g, b in self._blocks[own].data.items()}
        self._adapter.freeze()
        if not fisher:
            self._fisher = None
        elif self._fisher is None:
            self._fisher = self._measured_fisher(own, round)
        losses = []
        for step in range(steps):
            self._place(self._rehearsed(round, step) if rehearse else ())
            losses.append(self._step(own, round, step, settings or {}))
        return TrainResult(tuple(losses), time.perf_counter() - start)

    def _measured_fisher(self, own: BlockKey, round: int) -> FisherSteps:
        """AdamW's moments begin with it, and again when it ends: they hold for one basis."""
        self._optimizers.pop(own, None)
        train, size = self._config.train, min(BATCH, self._config.data.batch)
        batches = self._own_batches("fisher", round, size)
        model, block = self._adapter.model, self._blocks[own]
        return FisherSteps(model, self.layout, block, batches, train.lr, train.weight_decay)

    def trials(self, round: int, tried: Mapping[Move, Settings]) -> dict[Move, float]:
        """By how much the loss on one batch would fall, in nats, in a round of training with each of the
        settings; -TRIED_WORST: it diverged. Block, moments and anchor stay as they are.
        """
        own = self._own
        if own is None:
            return {}
        data, optimizer = self._blocks[own].data, self._optimizer(own)
        kept = {group: b.clone() for group, b in data.items()}
        batch = self._measured_batch("trial", round)[0].to(self._device)
        self._place(())
        self._adapter.freeze()
        before, drops = self._loss(batch), {}
        for move, settings in tried.items():
            state = copy.deepcopy(optimizer.state_dict())
            try:
                for step in range(max(action.steps for action in settings.values())):
                    self._step(own, round, step, settings)
                drop = before - self._loss(batch)
            except RuntimeError:  # it diverged
                drop = -TRIED_WORST
            drops[move] = drop if math.isfinite(drop) else -TRIED_WORST
            for group, values in kept.items():
                data[group].copy_(values)
            optimizer.load_state_dict(state)
        return drops

    def _measured_batch(self, what: str, round: int) -> tuple[Encoded, np.random.Generator]:
        """A batch of a round for a measurement, from a stream of its own, and what is left of that."""
        draw = batch_generator(self._config.seed, f"{self._device_id}/{what}", round, 0)
        examples = min(self._config.data.batch, DIAGNOSED)
        return self._encoded.take(sample_batch(self._encoded, examples, draw)), draw

    @torch.no_grad()
    def _loss(self, batch: Encoded) -> float:
        return float(self._output(batch).loss)

    def _output(self, batch: Encoded) -> Any:
        return self._adapter.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
        )

    def set_anchor(self) -> None:
        """B~ of proximal damping <- the own block as it is: after a deletion, the consensus without it. The
        Fisher information of before is not that of the model any more."""
        own, self._fisher = self._own, None
        self._anchor = {} if own is None else {g: b.clone() for g, b in self._blocks[own].data.items()}

    def own_move(self) -> dict[str, float]:
        """||B - B_before||_F by group, B_before from the start of the last `train`."""
        own = self._own
        if own is None:
            return {}
        after = self._blocks[own].data
        return {g: float(torch.linalg.vector_norm(after[g] - before)) for g, before in self._before.items()}

    def diagnose(self, round: int, sketch: int, options: Options) -> Diagnosis:
        """What the device measures of its loss on one batch, all blocks included (diagnosis.py)."""
        batch, draw = self._measured_batch("diagnosis", round)
        self._place(())
        if self._sketcher is None or self._sketcher.size != sketch:
            self._sketcher = Sketcher(self._config.seed, self.layout, sketch)
        blocks = {key: self._blocks[key] for key in self._shown()}
        model, scale = self._adapter.model, self._recipe.scale
        return diagnose(model, self.layout, scale, blocks, batch, self._sketcher, options, draw)

    def _step(self, own: BlockKey, round: int, step: int, settings: Settings) -> float:
        indices = sample_batch(
            self._encoded,
            self._config.data.batch,
            batch_generator(self._config.seed, self._device_id, round, step),
        )
        batch = self._encoded.take(indices).to(self._device)
        for gradient in self._adapter.gradients.values():
            gradient.zero_()
        output = self._output(batch)
        loss = float(output.loss.detach())
        if not math.isfinite(loss):
            raise RuntimeError(
                f"train: loss is {loss} in round {round}, step {step}: it diverged; try a lower train.lr"
            )
        output.loss.backward()
        self._move(own, {g: a for g, a in settings.items() if g in self._adapter.gradients}, step)
        return loss

    def _move(self, own: BlockKey, settings: Settings, step: int) -> None:
        """One step of AdamW for the own block and, if gradients leak, for each foreign one that has some."""
        data = self._blocks[own].data
        for group, gradient in self._adapter.gradients.items():
            data[group].grad = gradient
        for group, action in settings.items():
            if step >= action.steps:
                data[group].grad = None  # AdamW passes over it, moments and all
            elif action.prox and group in self._anchor:
                pull = action.prox * (data[group] - self._anchor[group])
                data[group].grad = self._adapter.gradients[group] + pull
        if self._fisher is None:
            self._optimizer(own).step()
        else:
            self._fisher.step({g: b.grad for g, b in data.items() if b.grad is not None})
        for key in self._foreign() if self._leaks() else ():
            self._optimizer(key).step()
            for values in self._blocks[key].data.values():
                values.grad = None

    def _optimizer(self, key: BlockKey) -> torch.optim.AdamW:
        """Of one block, so that its moments go when it goes.

        AdamW divides a gradient by its own size: a leak has to scale the step, which for plain gradient
        descent is the same as scaling the gradient.
        """
        if key not in self._optimizers:
            train = self._config.train
            lr = train.lr if key == self._own else train.lr * self._config.isolation.leak
            parameters = list(self._blocks[key].data.values())
            decay = train.weight_decay if key == self._own else 0.0
            self._optimizers[key] = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=True)
        return self._optimizers[key]

    def _rehearsed(self, round: int, step: int) -> tuple[BlockKey, ...]:
        """Departure rehearsal: in a share of the steps, exactly one random foreign block is dropped."""
        foreign, share = self._foreign(), self._config.train.rehearsal
        if not foreign or not share:
            return ()
        # A stream of its own: batches are the same with and without rehearsal.
        draw = batch_generator(self._config.seed, f"{self._device_id}/rehearsal", round, step)
        return (foreign[int(draw.integers(len(foreign)))],) if draw.random() < share else ()

    def _leaks(self) -> bool:
        return self._config.isolation.leak > 0 and not self._literal

    def _foreign(self) -> list[BlockKey]:
        """The blocks beside the own one that are part of the model."""
        return [] if self._literal else [key for key in self._blocks.keys() if key != self._own]  # noqa: SIM118

    def _place(self, dropped: Sequence[BlockKey]) -> None:
        """Put the foreign blocks but the dropped ones beside the own: apart if they train, else folded."""
        keys = tuple(key for key in self._foreign() if key not in dropped)
        wanted = (self._leaks(), keys)
        if self._placed == wanted:
            return
        blocks: list[Block] = [self._blocks[key] for key in keys]
        for block in blocks:
            for values in block.data.values():
                values.requires_grad_(self._leaks())
        self._adapter.place(blocks, apart=self._leaks())
        self._placed = wanted

    def _outdate(self) -> None:
        """Blocks have changed: take what was placed out of the model at once, place it when it is needed."""
        self._adapter.clear()
        self._placed = None

    # -- records ---------------------------------------------------------------------------------------
    def norms(self) -> dict[str, dict[str, float]]:
        """||C_u||_F = s ||B_u||_F by block ("d0@0") and group."""
        return self._blocks.norms()

    def sha256(self) -> str:
        """Of the adapter as an export would write it now (`peers.storage.adapter_folder.adapter_sha256`)."""
        return blocks_sha256(self.layout, saved_blocks(self._blocks, self._shown()))

    def snapshot(self, path: Path, meta: Mapping[str, str], settled: bool = False) -> None:
        """Write what this device computes with to `path` (.safetensors), for the harness (docs/records.md).

        `settled`: the own block as it was before the local steps that are under way.
        """
        shown = self._shown()
        slots = {str(key): self._blocks[key].slot for key in shown}
        tensors = self._blocks.tensors(shown)
        if settled and self._own is not None:
            tensors |= {f"{self._own}/{g}": b.detach().to("cpu", copy=True) for g, b in self._before.items()}
        write_snapshot(path, tensors, slots, meta)

    def export(self, path: Path) -> str:
        """Write the adapter as a folder that plain PEFT loads ; returns its sha256."""
        return write_adapter(path, self._recipe, saved_blocks(self._blocks, self._shown()))

    def checkpoint(self, path: Path) -> None:
        """Write all that is held, and the own block's moments, for a run that goes on with it."""
        moments = {}
        if self._own is not None and self._own in self._optimizers:
            state = self._optimizers[self._own].state
            moments = {g: state[b] for g, b in self._blocks[self._own].data.items() if b in state}
        save(path, self._blocks, moments, self.fingerprint)

    def _shown(self) -> list[BlockKey]:
        """The blocks of the model: all, but in `paper-literal` the own one alone."""
        if self._literal:
            return [] if self._own is None else [self._own]
        return self._blocks.keys()
