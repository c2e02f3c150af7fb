"""One device's blocks, the model that computes with them, and local training on the device's data.

Not thread-safe: one thread at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from coordinator_free.identifiers import BlockKey, Part
from peers.errors import InputError
from peers.learning.closed_state import ClosedState
from peers.learning.curvature import curvature_along
from peers.learning.diagnosis import Diagnosis, Options
from peers.learning.foreign_inputs import unpack_moments
from peers.learning.local_steps import LocalSteps, TrainResult
from peers.learning.measurement import Measurement, Move
from peers.lora.adapted_model import Adapter
from peers.lora.bases import Bases, Recipe
from peers.lora.blocks import Block, BlockSet
from peers.lora.fingerprint import Fingerprint
from peers.storage.adapter_folder import blocks_sha256, saved_blocks, write_adapter
from peers.storage.checkpoint import Checkpoint, Place, load, save
from peers.storage.snapshots import write_snapshot
from peers.tasks.logit_adjustment import adjusted
from peers.unlearning.deletion_receipt import DeletionReceipt
from peers.unlearning.handover_refit import handover_refit
from peers.unlearning.leave_projection import project_out

if TYPE_CHECKING:
    from coordinator_free.correction.policy_interface import Settings
    from peers.config import DeviceConfig
    from peers.models.loader import LoadedModel
    from peers.tasks.batch import Batch

PAPER_LITERAL = "paper-literal"


class Learner:
    """One device's model. `loaded.model` is changed in place.

    Every held block is part of the model. Exception `paper-literal`: the model is the base with the own block
    alone, and foreign blocks are only stored.

    Raises InputError if the configuration does not fit the model (target modules, ranks, slots).
    """

    def __init__(
        self, loaded: LoadedModel, config: DeviceConfig, encoded_train: Batch, device_id: str
    ) -> None:
        self._config, self._device_id = config, device_id
        self._recipe = Recipe.make(loaded, config)
        data = adjusted(encoded_train, config.train.logit_adjustment, loaded.image_format)
        self.layout = self._recipe.layout
        self.groups = self.layout.groups
        bases = Bases(self._recipe)
        self.fingerprint = Fingerprint.make(bases)
        self._literal = config.mixing.mode == PAPER_LITERAL
        self._adapter = Adapter(loaded.model, self.layout, self._recipe.scale, config.train.checkpointing)
        self._blocks = BlockSet(bases, self._adapter.device)
        self._local = LocalSteps(self._adapter, self._blocks, config, data, device_id)
        self._closed = ClosedState()
        self._cut = threading.Event()  # the local steps under way are to end
        self._measurement = Measurement(self._adapter, self.layout, config, data, device_id)
        # Do foreign blocks train, and which of them are in the model; None: the model has to be made anew.
        self._placed: tuple[bool, tuple[BlockKey, ...]] | None = None
        old = config.checkpoint.resume
        self._begins_with = load(Path(old), device_id, self.fingerprint) if old else Checkpoint()

    # -- blocks ----------------------------------------------------------------------------------------
    @property
    def own(self) -> BlockKey | None:
        """The block that trains."""
        return self._local.own

    def has(self, key: BlockKey) -> bool:
        return key in self._blocks

    def held(self) -> list[BlockKey]:
        """The held blocks, sorted by key."""
        return self._blocks.keys()

    def block(self, key: BlockKey) -> Block:
        """A held block; its tensors are not copies. Raises KeyError if it is not held."""
        return self._blocks[key]

    def difference(self, fingerprint: Mapping[str, Any]) -> str | None:
        """The differences from another device's fingerprint, as received; None if there is none."""
        try:
            return self.fingerprint.difference(Fingerprint.from_dict(fingerprint))
        except InputError as error:
            return str(error)

    def resumes(self) -> tuple[Place, ...]:
        """The blocks of the checkpoint that this device begins with, later incarnations last."""
        return self._begins_with.places

    def add_block(self, key: BlockKey, slot: int, resume: bool = False) -> None:
        """Hold another device's block: at B = 0, or with the values of the checkpoint (`resume`).

        Raises ValueError if it is held already.
        """
        self._blocks.add(key, slot)
        if resume:
            self._resume(key, slot)
        self._outdate()

    def _resume(self, key: BlockKey, slot: int) -> None:
        for group, values in self._begins_with.pop_block(Place(key.device, slot)).items():
            self._blocks.set(key, group, values)

    def set_own(self, key: BlockKey, slot: int, carry: BlockKey | None = None, resume: bool = False) -> None:
        """Train this block from now on. It starts at B = 0, or with the values of `carry`, an earlier block
        on that slot, or with the values and the moments of the checkpoint (`resume`).

        The block that was trained before stays, frozen, until it is deleted.
        """
        self._blocks.add(key, slot)
        if carry is not None and carry in self._blocks:
            for group, values in self._blocks[carry].data.items():
                self._blocks.set(key, group, values)
            self._closed.carry(carry, key)
        self._closed.forget_moments()
        self._local.set_own(key)
        if resume:
            self._resume(key, slot)
            self._local.set_moments(self._begins_with.moments)
        self._outdate()

    def delete_block(self, key: BlockKey, refit: float = 0.0, project: bool = False) -> DeletionReceipt:
        """Delete a block: its values, its optimiser's moments and its part of the weights.

        Their memory is overwritten (docs/security.md).

        refit: share of the block's output on the own data that the own block takes over (handover_refit.py).
        project: no step until the end of the correction may bring this output back (projection.py).
        `paper-literal` also applies the leave projection as printed, dW <- dW (I - A_u A_u^T), to the own dW.
        The projection removes only a small part (method 1). Raises KeyError if the block is not held.
        """
        before = self.sha256()
        own = self._local.own
        if (refit or project) and own is not None and key != own:
            moves = self._replacement(own, key)
            if refit:
                taken = {group: refit * move for group, move in moves.items()}
                self._local.add_to_own(taken)
                self._closed.add(own, taken)
            if project:
                self._local.bar_way_back(key, moves)
        basis = self._blocks[key].bases
        self._outdate(erase=True)
        self._blocks.delete(key)
        self._closed.delete(key)
        self._local.forget_block(key)
        self._measurement.forget_block(key)
        if self._literal:
            self._project_out(basis)
        return DeletionReceipt(before, self.sha256())

    def _replacement(self, own: BlockKey, gone: BlockKey) -> dict[str, Tensor]:
        """The move of the own block that replaces the output of another one on the own data, by group."""
        # The stream keeps the former name of the refit: its draws stay the same.
        batches = self._measurement.batches(f"handover/{gone}", 0)
        return handover_refit(self.model, self.layout, self._blocks[own], self._blocks[gone], batches)

    def _project_out(self, gone: Mapping[str, Tensor]) -> None:
        own, settled = self._local.own, self._settled()
        if own is not None:
            for blocks in [self._blocks] if settled is self._blocks else [self._blocks, settled]:
                project_out(blocks, own, gone)

    def read(self, key: BlockKey, group: str) -> Tensor:
        """B_u of a group: a float32 copy on the CPU, [rows_g, r_g]. Raises KeyError if it is not held."""
        return self._blocks[key].data[group].detach().to("cpu", copy=True)

    def write(self, key: BlockKey, group: str, values: Tensor) -> None:
        """B_u of a group <- values. Raises KeyError if it is not held, ValueError for another shape.

        The own block keeps its moments.
        """
        self._blocks.set(key, group, values)
        self._closed.set(key, group, values)
        if key != self._local.own:
            self._outdate()

    # -- training --------------------------------------------------------------------------------------
    @property
    def model(self) -> Any:
        """The PEFT model with all blocks of this device in it."""
        self._place(())
        return self._adapter.model

    def keep_account(self, folder: Path) -> None:
        """Keep the account of spent privacy there, if privacy is on (`LocalSteps.keep_account`)."""
        self._local.keep_account(folder)

    def begin_round(self) -> None:
        """Until `close_round`, files show the blocks as they are now: local steps are no result alone."""
        own = self._local.own
        moving = [] if own is None else [own, *(self._foreign() if self._leaks() else ())]
        moments = self._local.moments() if self._config.checkpoint.writes else None
        self._closed.keep(self._blocks, moving, moments)

    def close_round(self) -> None:
        """The local steps are mixed, or about to be: files show the blocks themselves."""
        self._closed.close()

    def cut_training(self) -> None:
        """Let the local steps under way end early. From another thread, when their result is not needed."""
        self._cut.set()

    def train(
        self, round: int, steps: int, rehearse: bool, settings: Settings | None = None, fisher: bool = False
    ) -> TrainResult:
        """`steps` local steps of AdamW on the own block. The moments last over rounds.

        Step t draws its batch from (seed, device, round, t) alone. With `isolation.leak` > 0 foreign copies
        train too. rehearse: `train.rehearsal` applies. settings: of a correction policy, by group: the number
        of steps that move the group, and lambda_g. A correction does not rehearse, and ends with the first
        training that does. fisher: the own block moves in the eigenbasis of its Fisher information, which the
        first such round measures. Raises RuntimeError without an own block, or if the loss is not finite. A
        device without data takes no step.
        """
        own = self._local.own
        if own is None:
            raise RuntimeError("train: this device has no block of its own yet")
        start = time.perf_counter()
        self._begins_with.clear()
        self._local.begin_training()
        self._use_fisher(own, round, fisher)
        if rehearse:
            self._local.end_correction()
        else:
            self._use_ewc(own, round)
        losses = []
        for step in range(self._local.granted(steps)):
            if self._cut.is_set():
                break
            self._place(self._local.left_out(self._foreign(), round, step) if rehearse else ())
            leaking = self._foreign() if self._leaks() else ()
            losses.append(self._local.step(round, step, settings or {}, leaking))
        gaps = self._measurement.gaps(self._local, round, losses)
        return TrainResult(tuple(losses), time.perf_counter() - start, gaps, self._local.epsilon)

    def _use_fisher(self, own: BlockKey, round: int, fisher: bool) -> None:
        """AdamW's moments hold for one basis: they begin anew when the Fisher basis is measured."""
        every = self._config.train.fisher_every
        if not fisher and not every:
            self._local.fisher = None
            return
        if every and round % every == 0:
            self._local.fisher = None
        if self._local.fisher is None:
            self._local.forget_moments(own)
            self._place(())
            self._local.fisher = self._measurement.fisher_steps(self._blocks[own], round)
        self._local.use_inputs()

    def _use_ewc(self, own: BlockKey, round: int) -> None:
        """Measure once in a correction. A block that began at the event has nothing to keep."""
        anchor = self._local.anchor
        kept = any(bool(values.any()) for values in anchor.values())
        if self._config.correction.ewc and self._local.ewc is None and kept:
            self._place(())
            self._local.ewc = self._measurement.elastic_weights(self._blocks[own], anchor, round)

    def set_anchor(self, consensus: Mapping[str, Tensor] | None = None) -> None:
        """B~ of proximal damping <- the consensus, by group (`LocalSteps.set_anchor`)."""
        self._local.set_anchor(consensus or {})

    def scale_own_move(self, omega: float) -> None:
        """B <- B_before + omega (B - B_before), B_before from the start of the last `train` (method 5)."""
        self._local.scale_own_move(omega)

    def own_move(self) -> dict[str, float]:
        """||B - B_before||_F by group, B_before from the start of the last `train`."""
        return self._local.own_move()

    # -- measurements ----------------------------------------------------------------------------------
    def trials(self, round: int, tried: Mapping[Move, Settings]) -> dict[Move, float]:
        """The drop of the loss in a round of training with each of the settings (`Measurement.trials`)."""
        own = self._local.own
        if own is None:
            return {}
        self._place(())
        self._adapter.freeze()
        return self._measurement.trials(self._local, self._blocks[own], round, tried)

    def second_moments(self, keys: Sequence[BlockKey], round: int) -> dict[BlockKey, bytes]:
        """The own inputs' second moments for the owners of held blocks (`Measurement.second_moments`)."""
        self._place(())
        blocks = {key: self._blocks[key] for key in keys if key in self._blocks}
        return self._measurement.second_moments(blocks, round)

    def know_inputs(self, source: BlockKey, packed: bytes) -> bool:
        """Keep the second moments that the owner of block `source` has sent, for interference-aware steps.

        Returns False, and changes nothing, if they do not fit or the block is not held.
        """
        found = unpack_moments(packed, self.layout, self._adapter.device)
        if found is None or source not in self._blocks:
            return False
        self._local.know_inputs(source, found)
        return True

    def diagnose(
        self, round: int, sketch: int, options: Options, mixed: Mapping[Part, Tensor] | None = None
    ) -> Diagnosis:
        """Measure the loss on one batch with all blocks in the model (`Measurement.diagnose`).

        mixed: by how much the last mixing moved the copies, [rows_g, r_g]; L-hat is the curvature along it.
        """
        self._place(())
        blocks = {key: self._blocks[key] for key in self._shown()}
        found = self._measurement.diagnose(blocks, round, sketch, options)
        along = curvature_along(self._blocks, mixed or {}, found.loss, lambda: self._loss_now(round))
        self._outdate()
        return found if along is None else found.with_smoothness(along)

    def _loss_now(self, round: int) -> float:
        self._outdate()
        self._place(())
        return self._measurement.loss(round)

    # -- the model -------------------------------------------------------------------------------------
    def _leaks(self) -> bool:
        return self._config.isolation.leak > 0 and not self._literal

    def _foreign(self) -> list[BlockKey]:
        """The foreign blocks of the model."""
        own = self._local.own
        return [] if self._literal else [key for key in self.held() if key != own]

    def _place(self, dropped: Sequence[BlockKey]) -> None:
        """Put the foreign blocks but the dropped ones into the model: apart if they train, else folded."""
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

    def _outdate(self, erase: bool = False) -> None:
        """Blocks have changed. Remove the foreign blocks from the model now; the next use places them.

        erase: overwrite the memory of the weights into which they were folded.
        """
        self._adapter.clear(erase)
        self._placed = None

    # -- records ---------------------------------------------------------------------------------------
    def norms(self) -> dict[str, dict[str, float]]:
        """||C_u||_F = s ||B_u||_F by block ("d0@0") and group."""
        return self._blocks.norms()

    def sha256(self) -> str:
        """Hash of the adapter that an export would write now (`adapter_folder.adapter_sha256`)."""
        return blocks_sha256(self.layout, saved_blocks(self._settled(), self._shown()))

    def snapshot(self, path: Path, meta: Mapping[str, str]) -> None:
        """Write the blocks of the model to `path` (.safetensors), for the evaluator (docs/records.md).

        This and all other files show the state of the last closed round (`ClosedState`).
        """
        slots = {key: self._blocks[key].slot for key in self._shown()}
        write_snapshot(path, self._settled().tensors(slots), {str(k): n for k, n in slots.items()}, meta)

    def export(self, path: Path) -> str:
        """Write the adapter as a folder (`adapter_folder.write_adapter`); returns its sha256."""
        self._cut.clear()
        return write_adapter(path, self._recipe, saved_blocks(self._settled(), self._shown()))

    def checkpoint(self, path: Path, closed: int) -> None:
        """Write all held blocks and the own block's moments. Another run can begin with this file.

        closed: the last closed round.
        """
        moments = self._closed.moments(self._local.moments())
        save(path, self._settled(), moments, self.fingerprint, closed)

    def _settled(self) -> BlockSet:
        """The blocks as they were when the last round was closed."""
        return self._closed.blocks(self._blocks)

    def _shown(self) -> list[BlockKey]:
        """The blocks of the model: all held ones, in `paper-literal` the own one alone."""
        own = self._local.own
        if self._literal:
            return [] if own is None else [own]
        return self.held()
