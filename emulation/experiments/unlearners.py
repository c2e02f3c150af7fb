"""The baselines that need more than keys of a scenario: a run's learners, watched at the leave of a device.

A baseline needs what no device of a run may have: the leaver's gradient, its steps of distillation, or a
history of moves. All devices are in one process (one_process.py), so the learners are at hand. Survivors
unlearn before their first local steps after the leave. Each moves its own copies of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from coordinator_free.correction.policy_interface import Settings
from coordinator_free.identifiers import BlockKey
from emulation.analysis.records import Record
from emulation.experiments.arms import EWC_LEAVE, FEDERASER, INFLUENCE, KD_UNLEARN
from emulation.experiments.grid import Cell
from peers.config import DeviceConfig
from peers.learning.backward_pass import passes
from peers.learning.learner import Learner
from peers.learning.local_steps import TrainResult
from peers.models.loader import LoadedModel, load_model
from peers.runtime.main import build_learner
from peers.runtime.spec import DeviceSpec
from peers.tasks import Batch, predictions
from peers.unlearning.federaser import History, Moves, calibrated
from peers.unlearning.influence import clipped, influence_move, kronecker_factors
from peers.unlearning.kd_unlearn import distillation_loss

CALIBRATION = 0.5  # of the local steps in a repeated round: Liu et al. (2021) take half
KD_STEPS = 40


class Unlearner:
    """A baseline in one run. It sees the learners of all devices, and counts the costs of the unlearning.

    This class does nothing at the leave. learners: by device. folder: of the run. sent_bytes: payloads of the
    unlearning, of all devices. leaver_steps: local steps of the leaver for it.
    """

    def __init__(self, cell: Cell, folder: Path) -> None:
        self.leaver, self.survivors, self.event_round = cell.leaver, cell.survivors, cell.event_round
        self.folder = folder
        self.learners: dict[str, WatchedLearner] = {}
        self.sent_bytes = self.leaver_steps = 0

    def make_learner(self, spec: DeviceSpec) -> Learner:
        """The learner of a device of the run (`one_process.run`)."""
        return build_learner(spec, partial(WatchedLearner, self))

    @property
    def stored_bytes(self) -> int:
        """What one device keeps for the baseline alone, at most."""
        return 0

    def unlearn(self, learner: WatchedLearner, round: int) -> None:
        """Called for each survivor before its first local steps after the leave."""

    def steps(self, learner: WatchedLearner, round: int, steps: int) -> int:
        """The number of local steps of a round, where the protocol wants `steps`."""
        return steps

    def moved(self, learner: WatchedLearner, round: int, move: Moves) -> Moves:
        """The move of the own block that counts, where the local steps made `move`."""
        return move

    def with_costs(self, measures: Record) -> Record:
        """The measures of the run with the costs of the unlearning."""
        curve = [{**point, "bytes": point["bytes"] + self.sent_bytes} for point in measures["curve"]]
        costs = {"stored_bytes": self.stored_bytes, "leaver_steps": self.leaver_steps}
        return {**measures, **costs, "curve": curve}


class WatchedLearner(Learner):
    """A learner whose rounds an unlearner sees. data: the device's own examples."""

    def __init__(
        self, unlearner: Unlearner, loaded: LoadedModel, config: DeviceConfig, data: Batch, device: str
    ) -> None:
        super().__init__(loaded, config, data, device)
        self.config, self.data, self.device = config, data, device
        self._unlearner, self._waits = unlearner, True
        unlearner.learners[device] = self

    def train(
        self,
        round: int,
        steps: int,
        rehearse: bool,
        settings: Settings | None = None,
        fisher: bool = False,
    ) -> TrainResult:
        """As `Learner.train`. A correction (no rehearsal) after the leave begins with the unlearning."""
        unlearner = self._unlearner
        if self._waits and not rehearse and round > unlearner.event_round:
            self._waits = False
            unlearner.unlearn(self, round)
        before, own = self.own_values(), self.own
        result = super().train(round, unlearner.steps(self, round, steps), rehearse, settings, fisher)
        made = {group: after - before[group] for group, after in self.own_values().items()}
        wanted = unlearner.moved(self, round, made)
        if wanted is not made and own is not None:
            for group, move in wanted.items():
                self._blocks.set(own, group, before[group] + move)  # files show the state before the steps
        return result

    def own_values(self) -> Moves:
        """A copy of the own block, [rows_g, r_g] by group."""
        own = self.own
        return {} if own is None else {group: self.read(own, group) for group in self.groups}

    def shift(self, key: BlockKey, move: Mapping[str, Tensor]) -> None:
        """Add a move, [rows_g, r_g] by group, to a copy that is held."""
        for group, values in move.items():
            self.write(key, group, self.read(key, group) + values)

    def block_bytes(self) -> int:
        """The payload bytes of one block."""
        return self.layout.block_bytes(self.config.radio.codec)

    @property
    def ewc_bytes(self) -> int:
        """What EWC keeps in the correction under way."""
        return 0 if self._local.ewc is None else self._local.ewc.stored_bytes


class ElasticWeightConsolidation(Unlearner):
    """The key `correction.ewc` does the work. Here its bytes are counted."""

    @property
    def stored_bytes(self) -> int:
        return max(learner.ewc_bytes for learner in self.learners.values())


class MovedBlocks(Unlearner):
    """Blocks move once, and the leaver's block stays."""

    def __init__(self, cell: Cell, folder: Path) -> None:
        super().__init__(cell, folder)
        self._moves: dict[str, Moves] | None = None

    def moves(self) -> dict[str, Moves]:
        """The moves by owner; counts their costs."""
        raise NotImplementedError

    def unlearn(self, learner: WatchedLearner, round: int) -> None:
        if self._moves is None:
            self._moves = self.moves()
        for owner, move in self._moves.items():
            learner.shift(BlockKey(owner, 0), move)
        name = f"{round:05d}-unlearned-{self.leaver}.safetensors"  # the evaluation of k = 0
        path = self.folder / "devices" / learner.device / "snapshots" / name
        tag = f"unlearned:{self.leaver}"
        learner.snapshot(
            path, {"device": learner.device, "round": str(round), "tag": tag, "incarnation": "0"}
        )


class Influence(MovedBlocks):
    """Each owner moves its block by an influence step, the first survivor also the leaver's block.

    The leaver has sent its gradient of all blocks to every survivor. Then the moved blocks are sent. Not for
    the kind of adapter `vera` (`Cell.checked`): the step is for a matrix B with r columns.
    """

    def moves(self) -> dict[str, Moves]:
        gradients = self._gradients()
        examples = {device: len(learner.data) for device, learner in self.learners.items()}
        share = examples[self.leaver] / sum(examples.values())
        doers = {owner: owner for owner in self.survivors} | {self.leaver: self.survivors[0]}
        found = {o: self._step(self.learners[doer], o, gradients[o], share) for o, doer in doers.items()}
        receivers = len(self.survivors) * len(gradients) + len(found) * (len(self.survivors) - 1)
        self.sent_bytes += receivers * self.learners[self.leaver].block_bytes()
        return found

    def _gradients(self) -> dict[str, Moves]:
        """The gradient of the leaver's mean loss w.r.t. every block, by owner and group."""
        learner = self.learners[self.leaver]
        layout, scale = learner.layout, learner.config.adapter.scale
        found = {key.device: layout.zeros() for key in learner.held()}
        for name, (x, d) in passes(learner.model, layout, learner.data).items():
            group = layout.by_name[name].group
            for owner, gradient in found.items():
                z = learner.block(BlockKey(owner, 0)).features(name, x.float())
                gradient[group][layout.slices(group)[name]] = scale * torch.einsum("ntk,ntr->kr", d, z)
        return found

    def _step(self, learner: WatchedLearner, owner: str, gradient: Moves, share: float) -> Moves:
        """The step of one block, with the curvature on the learner's data. No module moves by more than its
        norm."""
        data, key = learner.data, BlockKey(owner, 0)
        layout, block, scale = learner.layout, learner.block(key), learner.config.adapter.scale
        found = layout.zeros()
        for name, (x, d) in passes(learner.model, layout, data).items():
            group = layout.by_name[name].group
            rows, counted = layout.slices(group)[name], data.counted(x.shape[1])
            left, right = kronecker_factors(block.features(name, x.float()), d, counted, scale)
            move = influence_move(gradient[group][rows], left, right, share)
            found[group][rows] = clipped(move, float(learner.read(key, group)[rows].norm()))
        return found


class Distillation(MovedBlocks):
    """Before it goes, the leaver trains its block towards the base model on its own data, and sends it."""

    def moves(self) -> dict[str, Moves]:
        learner = self.learners[self.leaver]
        data, before = learner.data, learner.own_values()
        with torch.no_grad():
            wanted_logits, wanted = predictions(load_model(learner.config.model).model, data)
        model = learner.model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=learner.config.train.lr, weight_decay=0.0)
        for _ in range(KD_STEPS):
            optimiser.zero_grad(set_to_none=False)
            loss = distillation_loss(predictions(model, data)[0], wanted_logits, wanted)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        self.leaver_steps += KD_STEPS
        self.sent_bytes += len(self.survivors) * learner.block_bytes()
        return {self.leaver: {g: after - before[g] for g, after in learner.own_values().items()}}


class Eraser(Unlearner):
    """FedEraser: the survivors begin again at B = 0, and repeat the stored rounds with fewer steps."""

    def __init__(self, cell: Cell, folder: Path) -> None:
        super().__init__(cell, folder)
        devices = (*cell.survivors, cell.leaver)
        self.histories = {device: History(cell.arm.repeats) for device in devices}
        self._repeated = dict.fromkeys(devices, 0)  # stored rounds
        self._began: set[str] = set()

    @property
    def stored_bytes(self) -> int:
        return max(history.stored_bytes for history in self.histories.values())

    def unlearn(self, learner: WatchedLearner, round: int) -> None:
        self._began.add(learner.device)
        for key in learner.held():
            for group in learner.groups:
                learner.write(key, group, torch.zeros_like(learner.read(key, group)))

    def _stored(self, device: str) -> Moves | None:
        """The stored move that a device repeats in this round."""
        rounds, at = self.histories[device].rounds, self._repeated[device]
        return rounds[at] if device in self._began and at < len(rounds) else None

    def steps(self, learner: WatchedLearner, round: int, steps: int) -> int:
        return steps if self._stored(learner.device) is None else max(1, int(CALIBRATION * steps))

    def moved(self, learner: WatchedLearner, round: int, move: Moves) -> Moves:
        stored = self._stored(learner.device)
        if stored is None:
            if round <= self.event_round:
                self.histories[learner.device].keep(round, move)
            return move
        self._repeated[learner.device] += 1
        return {group: calibrated(stored[group], values) for group, values in move.items()}


MAKERS: Mapping[str, Callable[[Cell, Path], Unlearner]] = {
    EWC_LEAVE: ElasticWeightConsolidation,
    INFLUENCE: Influence,
    KD_UNLEARN: Distillation,
    FEDERASER: Eraser,
}


def unlearner_of(cell: Cell, folder: Path) -> Unlearner | None:
    """The unlearner of an arm in the run in `folder`; None for an arm that needs none."""
    make = MAKERS.get(cell.arm.name)
    return None if make is None else make(cell, folder)
