"""The learner thread: all work on the model, one piece after the other in the order of the calls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coordinator_free.averaging.copy_distances import Distances
from coordinator_free.averaging.mixing import Follow, Mix
from coordinator_free.correction import lookahead
from coordinator_free.correction.policies import SCHEDULES
from coordinator_free.correction.residuals import effective_eta, pack, rate_from_gaps
from coordinator_free.identifiers import BlockKey, Part
from coordinator_free.ranges import path_component
from peers.config import DeviceConfig
from peers.learning.assumed_copies import AssumedCopies
from peers.learning.diagnosis import Diagnosis, Options
from peers.learning.learner import Learner
from peers.learning.local_steps import TrainResult
from peers.learning.neighbour_copies import NeighbourCopies
from peers.lora.blocks import overwrite
from peers.protocol import actions as do
from peers.protocol.signed_versions import SignedCopy, Versions
from peers.protocol.similar_copies import Near
from peers.runtime.recorder import Recorder
from peers.unlearning.deletion_receipt import DeletionReceipt

Result = TypeVar("Result")
Diagnosed = tuple[NDArray[np.float64], Diagnosis]  # packed observables


class Trained(NamedTuple):
    """The result of a round's local steps.

    changed: parts that mixing has moved since the last training. distances: empty without an allocator. near:
    by peer and part, whether the peer's assumption of the own copy is within the tolerance; else empty.
    """

    result: TrainResult
    changed: set[Part]
    distances: Distances
    near: Near


def overwrite_copies(copies: Iterable[object]) -> None:
    """Overwrite the matrices of neighbours' copies. The payload of a signed copy cannot be written."""
    matrices = (copy.matrix if isinstance(copy, SignedCopy) else copy for copy in copies)
    overwrite(matrix for matrix in matrices if isinstance(matrix, Tensor))


class LearnerThread:
    """Queues work on the model. Public methods run in the event loop, private ones in the learner thread.

    A result comes as a future. Work is done in the order of the calls.
    """

    def __init__(
        self,
        learner: Learner,
        recorder: Recorder,
        config: DeviceConfig,
        on_failure: Callable[[BaseException], None],
        versions: Versions,
        copies: NeighbourCopies | None = None,
        assumed: AssumedCopies | None = None,
        worker: Executor | None = None,
    ) -> None:
        """`on_failure` gets the exception of any work, in the learner thread. `copies`: None without an
        allocator. `assumed`: None if every copy is sent (similar_copies.py). `worker` does the work, in
        order; None: a new thread."""
        self._learner, self._recorder, self._on_failure = learner, recorder, on_failure
        self._versions, self._copies, self._assumed = versions, copies, assumed
        self._thread = worker or ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._config = config
        self._cpu_s = 0.0  # of all work since the last line of metrics
        self._own: BlockKey | None = None
        self._changed: set[Part] = set()
        self._gaps: list[tuple[float, ...]] = []  # losses above their floor, by round, since the last event
        self._max_steps, self._steps = 0, dict[str, int]()  # of the last training: maximum, by group
        self._moves: dict[str, float] = {}
        self._mixed: dict[Part, Tensor] = {}  # by how much the last mixing moved the copies
        self._consensus: dict[Part, Tensor] = {}  # of the own block: mean of own and neighbours' copies

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Queue any work."""
        future = self._thread.submit(self._timed, work)
        future.add_done_callback(self._report_failure)
        return future

    def diagnose(self, action: do.Diagnose) -> Future[Diagnosed]:
        """Measure the observables of the residuals (method 6) on the model as it is then."""
        return self.submit(partial(self._diagnose, action))

    def second_moments(self, action: do.MeasureInputs) -> Future[dict[BlockKey, bytes]]:
        """Second moments of the own inputs for the owners of blocks, packed."""
        return self.submit(partial(self._learner.second_moments, action.keys, action.round))

    def know_inputs(self, action: do.KeepInputs) -> Future[bool]:
        """Keep the second moments of a neighbour's inputs. The result is False if they do not fit."""
        return self.submit(partial(self._learner.know_inputs, action.source, action.values))

    def train(self, action: do.Train) -> Future[Trained]:
        return self.submit(partial(self._train, action))

    def mix(self, mixes: tuple[Mix, ...], closes: bool = False) -> Future[None]:
        """Mix neighbours' copies into the own ones (method 5). `closes`: this closes the round."""
        return self.submit(partial(self._mix, mixes, closes))

    def add_block(self, action: do.AddBlock) -> Future[None]:
        return self.submit(partial(self._add_block, action))

    def own_block(self, action: do.OwnBlock) -> Future[None]:
        self._own = action.key
        return self.submit(
            partial(self._learner.set_own, action.key, action.slot, action.carry, resume=action.resume)
        )

    def drop_block(self, action: do.DropBlock) -> Future[DeletionReceipt | None]:
        """Delete a block. The result is None if the device did not hold it."""
        return self.submit(partial(self._drop_block, action))

    def on_neighbour_copy(self, peer: str, part: Part, matrix: Tensor) -> None:
        """Keep a neighbour's copy [rows_g, r_g] for the allocator. Without one this does nothing."""
        if self._copies is not None:
            self.submit(partial(self._copies.store_copy, peer, part, matrix))

    def forget_copies_of(self, peer: str) -> None:
        """Forget the copies of a neighbour that is gone or may have started again."""
        for copies in (self._copies, self._assumed):
            if copies is not None:
                self.submit(partial(copies.forget_neighbour, peer))

    def snapshot(self, action: do.Snapshot, device: str, incarnation: int) -> Future[None]:
        """Write the adapter for the evaluator, as it was when the last round was closed."""
        name = path_component(f"{action.round:05d}-{action.tag.replace(':', '-')}.safetensors")
        meta = {"device": device, "round": str(action.round), "tag": action.tag}
        meta["incarnation"] = str(incarnation)
        path = self._recorder.folder / "snapshots" / name
        return self.submit(partial(self._learner.snapshot, path, meta))

    def export(self, path: Path) -> Future[str]:
        """Write the adapter folder, as of the last closed round. The result is the adapter's SHA-256 in hex.

        Local steps under way end early: they are not exported.
        """
        self._learner.cut_training()
        return self.submit(partial(self._learner.export, path))

    def checkpoint(self, path: Path, closed: int) -> Future[None]:
        return self.submit(partial(self._learner.checkpoint, path, closed))

    def remove(self, path: Path) -> Future[None]:
        """Remove a file that earlier work may still write."""
        return self.submit(partial(path.unlink, missing_ok=True))

    def record_metrics(self, metrics: dict[str, object]) -> Future[None]:
        """Write a line of metrics.jsonl. It has the blocks' norms after all work that was queued before."""
        return self.submit(partial(self._record_metrics, metrics))

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _timed(self, work: Callable[[], Result]) -> Result:
        """Do work and count the CPU time of this thread. torch's own threads and GPUs are not counted."""
        began = time.thread_time()
        try:
            return work()
        finally:
            self._cpu_s += time.thread_time() - began

    def _record_metrics(self, metrics: dict[str, object]) -> None:
        cpu_s, self._cpu_s = round(self._cpu_s, 6), 0.0
        self._recorder.metrics({**metrics, "cpu_s": cpu_s, "norms": self._learner.norms()})

    def _report_failure(self, future: Future[Result]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._on_failure(error)

    def _train(self, action: do.Train) -> Trained:
        changed, self._changed = self._changed, set()
        self._learner.begin_round()
        if action.anchor:
            self._learner.set_anchor(self._own_consensus())
        steps = {group: settings.steps for group, settings in action.settings.items()}
        if steps != self._steps:  # the slope of the losses depends on the number of steps
            self._gaps = []
        learner = self._learner
        result = learner.train(action.round, action.steps, action.rehearse, action.settings, action.fisher)
        self._moves = self._learner.own_move()  # before damping and mixing change it
        self._steps = steps
        self._max_steps = result.steps
        self._gaps.append(result.gaps)
        if action.damping != 1.0:
            self._learner.scale_own_move(action.damping)
        near = {} if self._assumed is None else self._assumed.near(self._read)
        return Trained(result, changed, self._distances(), near)

    def _read(self, part: Part) -> Tensor | None:
        held = self._learner.has(part.block)
        return self._learner.read(part.block, part.group) if held else None

    def _own_consensus(self) -> dict[str, Tensor]:
        return {part.group: mean for part, mean in self._consensus.items() if part.block == self._own}

    def _distances(self) -> Distances:
        """Distances of the own copies, as they are now, from the neighbours' copies."""
        if self._copies is None:
            return Distances()
        held = [(key, group) for key in self._learner.held() for group in self._learner.groups]
        return self._copies.distances(
            {Part(key, group): self._learner.read(key, group) for key, group in held}
        )

    def _mix(self, mixes: tuple[Mix, ...], closes: bool) -> None:
        """own <- (1 - sum w) own + sum w * copy, in the order of `mixes` and of their terms."""
        if closes:
            self._learner.close_round()
            self._mixed = {}
        for mix in mixes:
            if self._learner.has(mix.part.block):
                self._mix_part(mix)

    def _mix_part(self, mix: Mix) -> None:
        key, group = mix.part.block, mix.part.group
        own = self._learner.read(key, group)
        mixed = own * (1.0 - sum(weight for weight, _ in mix.terms))
        copies = [own]
        for weight, copy in mix.terms:
            values = copy.matrix if isinstance(copy, SignedCopy) else copy
            if isinstance(copy, SignedCopy) and mix.version is not None:
                self._versions.keep(mix.part, mix.version, copy)
            if values is not None:
                mixed.add_(values, alpha=weight)
                copies.append(values)
        if key == self._own and self._config.correction.rounds:  # only a correction has an anchor
            self._consensus[mix.part] = torch.stack(copies).mean(dim=0)
        if not mixed.equal(own):
            self._learner.write(key, group, mixed)
            self._changed.add(mix.part)
            if self._config.correction.policy not in SCHEDULES:
                self._mixed[mix.part] = mixed - own
        if mix.follow is not None:
            self._follow(mix.part, mix.follow, own)

    def _follow(self, part: Part, follow: Follow, own: Tensor) -> None:
        """Move kept copies towards the owner's copy. `own`: the own copy before the mixing."""
        owner = own if follow.owner is None else follow.owner
        for share, kept in follow.kept:
            kept.lerp_(owner, share)
        if self._assumed is not None:
            self._assumed.follow(part, follow.peers, owner, follow.share)

    def _add_block(self, action: do.AddBlock) -> None:
        """Add a foreign block. It starts with the copy of `action.carry`, if that is held."""
        key, self._gaps = action.key, []  # the slope of losses from before an event says nothing about it
        self._learner.add_block(key, action.slot, resume=action.resume)
        earlier = action.carry
        if earlier is not None and self._learner.has(earlier):
            for group in self._learner.groups:
                self._learner.write(key, group, self._learner.read(earlier, group))

    def _diagnose(self, action: do.Diagnose) -> Diagnosed:
        """The packed observables of the device (method 6), followed by the results of trials, if any."""
        correction = self._config.correction
        options = Options(labels=correction.labels, masked=correction.masked)
        found = self._learner.diagnose(action.round, correction.sketch, options, self._mixed)
        own, rate = self._own, rate_from_gaps(self._gaps, action.members)
        groups = []
        for group, measured in found.groups.items():
            gradient = math.sqrt(measured.blocks.get(own, 0.0)) if own is not None else 0.0
            steps = min(self._max_steps, self._steps.get(group, self._max_steps))
            eta = effective_eta(self._moves.get(group, 0.0), steps, gradient)
            groups.append(measured.observables(found.gap, rate, eta, found.copies[group]))
        values = pack(groups)
        if action.trials:
            drops = self._learner.trials(action.round, action.trials)
            values = np.concatenate([values, lookahead.pack(drops, found.groups)])
        return values, found

    def _drop_block(self, action: do.DropBlock) -> DeletionReceipt | None:
        key, self._gaps = action.key, []
        self._changed = {part for part in self._changed if part.block != key}
        overwrite_copies([*action.copies, *self._versions.drop_block(key)])
        gone = [self._mixed.pop(part) for part in list(self._mixed) if part.block == key]
        overwrite(gone)
        for kept in (self._copies, self._assumed):
            if kept is not None:
                kept.drop_block(key)
        if not self._learner.has(key):
            return None
        if action.damping != 1.0:
            self._learner.scale_own_move(action.damping)
        if action.refit or key == self._own:  # a refitted block replaces all copies
            overwrite(self._consensus.values())
            self._consensus = {}
        return self._learner.delete_block(key, action.refit, action.project)
