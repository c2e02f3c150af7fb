"""The learner's thread, first in, first out: what is decided in order happens in order, beside the loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coordinator_free.averaging.mixing import Mix
from coordinator_free.correction import lookahead
from coordinator_free.correction.policies import SCHEDULES
from coordinator_free.correction.residuals import effective_eta, mu_from_losses, pack
from coordinator_free.identifiers import BlockKey, Part
from peers.config import FIFO, DeviceConfig
from peers.learning.diagnosis import Diagnosis, Options
from peers.learning.learner import Learner, TrainResult
from peers.learning.neighbour_copies import Distances, NeighbourCopies
from peers.protocol import actions as do
from peers.protocol.signed_versions import SignedCopy, Versions
from peers.runtime.recorder import Recorder
from peers.unlearning.deletion_receipt import DeletionReceipt

Result = TypeVar("Result")
Diagnosed = tuple[NDArray[np.float64], Diagnosis]  # packed observables


class Trained(NamedTuple):
    """changed: copies that mixing has moved since the last training. distances: where an allocator asks."""

    result: TrainResult
    changed: set[Part]
    distances: Distances


class LearnerThread:
    """Everything that touches the model. Each method queues work and returns its future."""

    def __init__(
        self,
        learner: Learner,
        recorder: Recorder,
        config: DeviceConfig,
        failed: Callable[[BaseException], None],
        versions: Versions,
    ) -> None:
        self._learner, self._recorder, self._failed = learner, recorder, failed
        self._versions = versions
        self.copies = None if config.radio.allocator == FIFO else NeighbourCopies()  # for its thread
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._config = config
        self._own: BlockKey | None = None
        self._changed: set[Part] = set()
        self._losses: list[tuple[float, ...]] = []  # since the correction began, by round and step
        self._most, self._steps = 0, dict[str, int]()  # of the last training, at most and by group
        self._moves: dict[str, float] = {}
        self._disagreement: dict[str, float] = {}  # D_g of the last mixing of each group

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Queue any work. `failed` is told, in the thread, what it raises."""
        future = self._thread.submit(work)
        future.add_done_callback(self._check)
        return future

    def diagnose(self, action: do.Diagnose) -> Future[Diagnosed]:
        return self.submit(partial(self._diagnose, action))

    def train(self, action: do.Train) -> Future[Trained]:
        return self.submit(partial(self._train, action))

    def mix(self, mixes: tuple[Mix, ...]) -> Future[None]:
        return self.submit(partial(self._mix, mixes))

    def add_block(self, action: do.AddBlock) -> Future[None]:
        return self.submit(partial(self._add, action))

    def own_block(self, action: do.OwnBlock) -> Future[None]:
        carry = None if action.carry is None else action.carry
        self._own = action.key
        return self.submit(
            partial(self._learner.set_own, self._own, action.slot, carry, resume=action.resume)
        )

    def drop_block(self, action: do.DropBlock) -> Future[DeletionReceipt | None]:
        """None: it was not held."""
        return self.submit(partial(self._drop, action))

    def heard(self, peer: str, part: Part, matrix: Tensor) -> None:
        """A neighbour's copy, for the allocator."""
        if self.copies is not None:
            self.submit(partial(self.copies.note, peer, part, matrix))

    def forget(self, peer: str) -> None:
        """A neighbour that is gone, or may have started again: what it held is not known any more."""
        if self.copies is not None:
            self.submit(partial(self.copies.forget, peer))

    def snapshot(self, action: do.Snapshot, device: str, incarnation: int) -> Future[None]:
        """For the harness. At an event local steps may be under way: it shows the last mixed state."""
        name = f"{action.round:05d}-{action.tag.replace(':', '-')}.safetensors"
        meta = {"device": device, "round": str(action.round), "tag": action.tag}
        meta["incarnation"] = str(incarnation)
        path = self._recorder.folder / "snapshots" / name
        return self.submit(partial(self._learner.snapshot, path, meta, ":" in action.tag))

    def export(self, path: Path) -> Future[str]:
        return self.submit(partial(self._learner.export, path))

    def checkpoint(self, path: Path) -> Future[None]:
        return self.submit(partial(self._learner.checkpoint, path))

    def record(self, metrics: dict[str, object]) -> Future[None]:
        """A line of metrics.jsonl with the norms as they are when all that was queued before is done."""
        return self.submit(lambda: self._recorder.metrics({**metrics, "norms": self._learner.norms()}))

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _check(self, future: Future[Result]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._failed(error)

    def _train(self, action: do.Train) -> Trained:
        changed, self._changed = self._changed, set()
        if action.anchor:
            self._learner.set_anchor()
            self._losses = []
        steps = {group: settings.steps for group, settings in action.settings.items()}
        if steps != self._steps:  # losses of other numbers of steps tell another slope
            self._losses = []
        learner = self._learner
        result = learner.train(action.round, action.steps, action.rehearse, action.settings, action.fisher)
        self._moves = self._learner.own_move()  # before damping, and before neighbours pull it back
        self._steps = steps
        self._most = result.steps
        self._losses.append(result.losses)
        if action.damping != 1.0:
            self._learner.scale_own_move(action.damping)
        return Trained(result, changed, self._distances())

    def _distances(self) -> Distances:
        """Of the copies as they are now from the neighbours'."""
        if self.copies is None:
            return Distances()
        held = [(key, group) for key in self._learner.held() for group in self._learner.groups]
        return self.copies.distances(
            {Part(key, group): self._learner.read(key, group) for key, group in held}
        )

    def _mix(self, mixes: tuple[Mix, ...]) -> None:
        """own <- (1 - sum w) own + sum w * copy, in the order of the operations and their terms."""
        mixed_now = {mix.part.group for mix in mixes if mix.terms}  # others wait for their H_g-th round
        self._disagreement.update(dict.fromkeys(mixed_now, 0.0))
        for mix in mixes:
            key = mix.part.block
            if not self._learner.has(key):
                continue
            own = self._learner.read(key, mix.part.group)
            mixed = own * (1.0 - sum(weight for weight, _ in mix.terms))
            for weight, copy in mix.terms:
                values = copy.matrix if isinstance(copy, SignedCopy) else copy
                if isinstance(copy, SignedCopy) and mix.version is not None:
                    self._versions.keep(mix.part, mix.version, copy)
                if values is not None:
                    mixed.add_(values, alpha=weight)
                refit = weight == 1.0 and mix.version is None  # which replaces a copy: no disagreement
                if values is not None and not refit:
                    self._note_distance(mix.part.group, weight, values, own)
            if not mixed.equal(own):
                self._learner.write(key, mix.part.group, mixed)
                self._changed.add(mix.part)

    def _add(self, action: do.AddBlock) -> None:
        key = action.key
        self._learner.add_block(key, action.slot, resume=action.resume)
        earlier = None if action.carry is None else action.carry
        if earlier is not None and self._learner.has(earlier):
            for group in self._learner.groups:
                self._learner.write(key, group, self._learner.read(earlier, group))

    def _note_distance(self, group: str, weight: float, values: Tensor, own: Tensor) -> None:
        """w ||B^(i) - B^(j)||^2, of D_g; not where no policy asks for it."""
        if self._config.correction.policy not in SCHEDULES:
            self._disagreement[group] += weight * float((values - own).square().sum())

    def _diagnose(self, action: do.Diagnose) -> Diagnosed:
        """The device's observables, packed; what is known beside the gradients goes with them (method 6)."""
        correction = self._config.correction
        found = self._learner.diagnose(action.round, correction.sketch, Options(labels=correction.labels))
        own = self._own
        groups = []
        for group, measured in found.groups.items():
            gradient = math.sqrt(measured.blocks.get(own, 0.0)) if own is not None else 0.0
            steps = min(self._most, self._steps.get(group, self._most))
            eta = effective_eta(self._moves.get(group, 0.0), steps, gradient)
            mu = mu_from_losses(self._losses, eta, action.members)
            groups.append(measured.observables(mu, eta, self._disagreement.get(group, 0.0)))
        values = pack(groups)
        if action.trials:
            drops = self._learner.trials(action.round, action.trials)
            values = np.concatenate([values, lookahead.pack(drops, found.groups)])
        return values, found

    def _drop(self, action: do.DropBlock) -> DeletionReceipt | None:
        key = action.key
        self._changed = {part for part in self._changed if part.block != key}
        self._versions.drop(key)
        if self.copies is not None:
            self.copies.drop(key)
        block = key
        if not self._learner.has(block):
            return None
        if action.damping != 1.0:
            self._learner.scale_own_move(action.damping)
        return self._learner.delete_block(block, action.refit)
