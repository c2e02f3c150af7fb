"""All devices of a run in one process, on a complete graph without loss, for the baselines.

One round equals a round of `unweft run` with `average`, gamma = 1 and a complete graph. Only the owner moves
a block, and all M devices average their copies. Every copy moves by 1/M of the owner's move (method 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from coordinator_free.identifiers import BlockKey
from emulation.scenario.schema import Scenario
from peers.learning.learner import Learner
from peers.models.loader import load_model
from peers.storage import checkpoint
from peers.tasks import Batch, make_task
from transport.wire.codec_names import payload_bytes

Moves = dict[str, Tensor]  # of an own block, by group, [rows_g, r_g]
Change = Callable[[str, Moves], Moves]  # device and its move, before averaging


class Network:
    """Learners by device, each with a copy of every block.

    sent_bytes: payloads that all devices sent. steps: local steps of all devices. The scenario may resume a
    checkpoint that `save` wrote.
    """

    def __init__(self, scenario: Scenario, devices: Sequence[str]) -> None:
        self.scenario, self.config = scenario, scenario.device_config()
        self.keys = {device: BlockKey(device, 0) for device in devices}
        self.data: dict[str, Batch] = {}
        self.learners: dict[str, Learner] = {}
        self.sent_bytes = self.steps = 0
        task, resume = make_task(self.config), self.config.checkpoint.resume is not None
        for device in devices:
            loaded = load_model(scenario.model)
            self.data[device] = loaded.encode(task.train_examples(device), scenario.data.max_length)
            learner = self.learners[device] = Learner(loaded, self.config, self.data[device], device)
            for slot, (owner, key) in enumerate(self.keys.items()):
                (learner.set_own if owner == device else learner.add_block)(key, slot, resume=resume)

    def round(self, number: int, steps: int, training: Sequence[str], change: Change | None = None) -> None:
        """Local steps of the devices that train, then the average of all copies."""
        moves = {device: self._train(device, number, steps) for device in training}
        for device, move in moves.items():
            made = move if change is None else change(device, move)
            self.add(device, {group: m / len(training) for group, m in made.items()}, training)
            self.sent_bytes += (len(training) - 1) * self.block_bytes()

    def _train(self, device: str, number: int, steps: int) -> Moves:
        """The move of a device's local steps. Its block is put back: `add` moves all copies alike."""
        learner, before = self.learners[device], self.own(device)
        self.steps += learner.train(number, steps, rehearse=False).steps
        move = {group: after - before[group] for group, after in self.own(device).items()}
        for group, values in before.items():
            learner.write(self.keys[device], group, values)
        return move

    def add(self, owner: str, move: Moves, holders: Sequence[str]) -> None:
        """Add a move to the holders' copies of a block."""
        for holder in holders:
            learner = self.learners[holder]
            for group, values in move.items():
                learner.write(self.keys[owner], group, learner.read(self.keys[owner], group) + values)

    def own(self, device: str) -> Moves:
        """A copy of a device's own block, by group."""
        learner = self.learners[device]
        return {group: learner.read(self.keys[device], group) for group in learner.groups}

    def delete(self, device: str, holders: Sequence[str]) -> None:
        """Drop a device's block. It costs no bytes."""
        for holder in holders:
            self.learners[holder].delete_block(self.keys[device])

    def block_bytes(self) -> int:
        """The bytes of one block in the codec of the scenario."""
        layout = next(iter(self.learners.values())).layout
        codec = self.scenario.radio.codec
        return sum(payload_bytes(codec, layout.rows(g), layout.rank(g)) for g in layout.groups)

    def save(self, run: Path) -> None:
        """Write the checkpoint of every device. `checkpoint.resume` = `run` begins with it."""
        for device, learner in self.learners.items():
            path = checkpoint.path_of(run, device)
            path.parent.mkdir(parents=True, exist_ok=True)
            learner.checkpoint(path, self.scenario.round.count - 1)

    def snapshot(self, device: str, path: Path) -> Path:
        """Write the model of a device for `MeanModelEvaluator`. All devices have the same blocks."""
        self.learners[device].snapshot(path, {"device": device, "round": "0", "tag": "round"})
        return path
