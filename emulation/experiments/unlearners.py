"""The baselines that need more than keys of a scenario: a run's learners, watched at each leave of a device.

A baseline needs what no device of a run may have: the leaver's gradient, its steps of distillation, or a
history of moves. All devices are in one process (one_process.py), so the learners are at hand. Survivors
unlearn before their first local steps after a leave. Each moves its own copies of the blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from coordinator_free.correction.policy_interface import Settings
from coordinator_free.identifiers import BlockKey
from emulation.analysis.records import Record
from emulation.experiments.arms import EWC_LEAVE, FEDERASER, INFLUENCE, KD_UNLEARN
from emulation.experiments.grid import Cell, Leave
from peers.config import DeviceConfig
from peers.learning.backward_pass import passes
from peers.learning.learner import Learner
from peers.learning.local_steps import TrainResult
from peers.models.loader import LoadedModel, load_model
from peers.runtime.main import build_learner
from peers.runtime.spec import DeviceSpec
from peers.tasks import Batch, predictions
from peers.unlearning.federaser import History, Moves, calibrated, stored_bytes
from peers.unlearning.influence import clipped, influence_move, kronecker_factors
from peers.unlearning.kd_unlearn import distillation_loss

CALIBRATION = 0.5  # of the local steps in a repeated round: Liu et al. (2021) take half
KD_STEPS = 40


class Unlearner:
    """A baseline in one run. It sees the learners of all devices, and counts the costs of the unlearning.

    This class does nothing at a leave. learners: by device. folder: of the run. sent_bytes: payloads of the
    unlearning, of all devices. leaver_steps: local steps of the leavers for it.
    """

    def __init__(self, cell: Cell, folder: Path) -> None:
        self.leaves, self.folder = cell.leaves, folder
        self.learners: dict[str, WatchedLearner] = {}
        self.sent_bytes = self.leaver_steps = 0

    def make_learner(self, spec: DeviceSpec) -> Learner:
        """The learner of a device of the run (`one_process.run`)."""
        return build_learner(spec, partial(WatchedLearner, self))

    @property
    def stored_bytes(self) -> int:
        """What one device has kept for the baseline alone, at most."""
        return 0

    def unlearn(self, learner: WatchedLearner, leave: Leave, round: int) -> None:
        """Called for each survivor of a leave before its first local steps after it."""

    def steps(self, learner: WatchedLearner, round: int, steps: int) -> int:
        """The number of local steps of a round, where the protocol wants `steps`."""
        return steps

    def moved(self, learner: WatchedLearner, round: int, move: Moves) -> Moves:
        """The move of the own block that counts, where the local steps made `move`."""
        return move

    def costs(self) -> Record:
        """The costs of the unlearning: what it sent, what a device kept, and the leavers' steps."""
        sent, stored, steps = self.sent_bytes, self.stored_bytes, self.leaver_steps
        return {"unlearning_bytes": sent, "stored_bytes": stored, "leaver_steps": steps}

    def with_costs(self, measures: Record) -> Record:
        """The measures of the run with the costs of the unlearning."""
        costs = self.costs()
        sent = costs.pop("unlearning_bytes")
        curve = [{**point, "bytes": point["bytes"] + sent} for point in measures["curve"]]
        return {**measures, **costs, "curve": curve}


class WatchedLearner(Learner):
    """A learner whose rounds an unlearner sees. data: the device's own examples."""

    def __init__(
        self, unlearner: Unlearner, loaded: LoadedModel, config: DeviceConfig, data: Batch, device: str
    ) -> None:
        super().__init__(loaded, config, data, device)
        self.config, self.data, self.device = config, data, device
        self._unlearner = unlearner
        self._ahead = deque(leave for leave in unlearner.leaves if device in leave.survivors)
        unlearner.learners[device] = self

    def train(
        self,
        round: int,
        steps: int,
        rehearse: bool,
        settings: Settings | None = None,
        fisher: bool = False,
    ) -> TrainResult:
        """As `Learner.train`. A correction (no rehearsal) after a leave begins with the unlearning."""
        unlearner = self._unlearner
        while self._ahead and not rehearse and round > self._ahead[0].round:
            unlearner.unlearn(self, self._ahead.popleft(), round)
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

    def __init__(self, cell: Cell, folder: Path) -> None:
        super().__init__(cell, folder)
        self._stored_bytes = 0

    @property
    def stored_bytes(self) -> int:
        return self._stored_bytes

    def moved(self, learner: WatchedLearner, round: int, move: Moves) -> Moves:
        self._stored_bytes = max(self._stored_bytes, learner.ewc_bytes)
        return move


class MovedBlocks(Unlearner):
    """Blocks move once at each leave, and the leaver's block stays."""

    def __init__(self, cell: Cell, folder: Path) -> None:
        super().__init__(cell, folder)
        self._moves: dict[Leave, dict[str, Moves]] = {}

    def moves(self, leave: Leave) -> dict[str, Moves]:
        """The moves by owner; counts their costs."""
        raise NotImplementedError

    def unlearn(self, learner: WatchedLearner, leave: Leave, round: int) -> None:
        if leave not in self._moves:
            self._moves[leave] = self.moves(leave)
        for owner, move in self._moves[leave].items():
            learner.shift(BlockKey(owner, 0), move)
        name = f"{round:05d}-unlearned-{leave.leaver}.safetensors"  # the evaluation of k = 0
        path = self.folder / "devices" / learner.device / "snapshots" / name
        tag = f"unlearned:{leave.leaver}"
        learner.snapshot(
            path, {"device": learner.device, "round": str(round), "tag": tag, "incarnation": "0"}
        )


class Influence(MovedBlocks):
    """Each owner moves its block by an influence step, and the first survivor those of devices that left.

    The leaver has sent its gradient of all blocks to every survivor. Then the moved blocks are sent. Not for
    the kind of adapter `vera` (`Cell.checked`): the step is for a matrix B with r columns.
    """

    def moves(self, leave: Leave) -> dict[str, Moves]:
        gradients = self._gradients(leave.leaver)
        examples = {owner: len(self.learners[owner].data) for owner in gradients}
        share = examples[leave.leaver] / sum(examples.values())
        doers = {owner: owner if owner in leave.survivors else leave.survivors[0] for owner in gradients}
        found = {o: self._step(self.learners[doer], o, gradients[o], share) for o, doer in doers.items()}
        receivers = len(leave.survivors) * len(gradients) + len(found) * (len(leave.survivors) - 1)
        self.sent_bytes += receivers * self.learners[leave.leaver].block_bytes()
        return found

    def _gradients(self, leaver: str) -> dict[str, Moves]:
        """The gradient of the leaver's mean loss w.r.t. every block, by owner and group."""
        learner = self.learners[leaver]
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

    def moves(self, leave: Leave) -> dict[str, Moves]:
        learner = self.learners[leave.leaver]
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
        self.sent_bytes += len(leave.survivors) * learner.block_bytes()
        return {leave.leaver: {g: after - before[g] for g, after in learner.own_values().items()}}


class Eraser(Unlearner):
    """FedEraser: the survivors begin again at B = 0, and repeat the stored rounds with fewer steps.

    While another leave is ahead, the repeated rounds are the new history.
    """

    def __init__(self, cell: Cell, folder: Path) -> None:
        super().__init__(cell, folder)
        self._interval, self._stored_bytes = cell.arm.repeats, 0
        self._histories: dict[str, History] = {}
        self._to_repeat: dict[str, deque[Moves]] = {}

    @property
    def stored_bytes(self) -> int:
        return self._stored_bytes

    def unlearn(self, learner: WatchedLearner, leave: Leave, round: int) -> None:
        for key in learner.held():
            for group in learner.groups:
                learner.write(key, group, torch.zeros_like(learner.read(key, group)))
        self._to_repeat[learner.device] = deque(self.history(learner.device).rounds)
        self._histories[learner.device] = History(self._interval)

    def history(self, device: str) -> History:
        """What a device stores for the next leave."""
        return self._histories.setdefault(device, History(self._interval))

    def steps(self, learner: WatchedLearner, round: int, steps: int) -> int:
        return max(1, int(CALIBRATION * steps)) if self._to_repeat.get(learner.device) else steps

    def moved(self, learner: WatchedLearner, round: int, move: Moves) -> Moves:
        history, left = self.history(learner.device), self._to_repeat.get(learner.device)
        needed = any(round <= leave.round for leave in self.leaves)
        if left:
            stored = left.popleft()
            move = {group: calibrated(stored[group], values) for group, values in move.items()}
            if needed:
                history.add(move)
        elif needed:
            history.keep(round, move)
        self._stored_bytes = max(self._stored_bytes, history.stored_bytes + stored_bytes(left or ()))
        return move


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
