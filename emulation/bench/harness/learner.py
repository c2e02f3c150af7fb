"""A learner with one matrix, for the devices of `unweft bench rounds`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from coordinator_free.correction.residuals import Size
from coordinator_free.identifiers import BlockKey
from emulation.bench.harness.sgd import RANK, ROWS, SmallStep
from peers.learning.local_steps import TrainResult
from peers.unlearning.deletion_receipt import DeletionReceipt

GROUP = "early"


class BenchLearner:
    """The methods of `Learner` that a driver uses in `paper-literal`. It trains its own block only."""

    groups = (GROUP,)

    def __init__(self, device: str) -> None:
        self._work = SmallStep(device)
        self._own: BlockKey | None = None
        self.layout = self.fingerprint = self

    def rows(self, group: str) -> int:
        return ROWS

    def rank(self, group: str) -> int:
        return RANK

    def size(self, group: str) -> Size:
        return Size(RANK, ROWS * RANK)

    def resumes(self) -> tuple[()]:
        """It resumes no checkpoint."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        return {"bench": "rounds"}

    def difference(self, fingerprint: Mapping[str, Any]) -> str | None:
        return None if fingerprint == self.to_dict() else "another benchmark"

    def has(self, key: BlockKey) -> bool:
        return key == self._own

    def add_block(self, key: BlockKey, slot: int, resume: bool = False) -> None:
        """Foreign blocks are not stored, since nothing here computes with them."""

    def set_own(self, key: BlockKey, slot: int, carry: BlockKey | None = None, resume: bool = False) -> None:
        self._own = key

    def delete_block(self, key: BlockKey, refit: float = 0.0) -> DeletionReceipt:
        return DeletionReceipt("", "")

    def read(self, key: BlockKey, group: str) -> Tensor:
        return self._work.weights.clone()

    def write(self, key: BlockKey, group: str, values: Tensor) -> None:
        self._work.weights.copy_(values)

    def scale_own_move(self, omega: float) -> None:
        """No damping in this mode."""

    def begin_round(self) -> None:
        """The benchmark writes no files of a closed round."""

    close_round = cut_training = begin_round

    def train(
        self, round: int, steps: int, rehearse: bool, settings: object = None, fisher: bool = False
    ) -> TrainResult:
        start = time.perf_counter()
        losses = [self._work.step() for _ in range(steps)]
        return TrainResult(tuple(losses), time.perf_counter() - start)

    def own_move(self) -> dict[str, float]:
        """No damping and no correction here."""
        return {}

    def norms(self) -> dict[str, dict[str, float]]:
        return {str(self._own): {GROUP: float(self._work.weights.norm())}}

    def sha256(self) -> str:
        return hashlib.sha256(self._work.weights.numpy().tobytes()).hexdigest()

    def snapshot(self, path: Path, meta: Mapping[str, str]) -> None:
        """The benchmark uses no snapshots."""

    def export(self, path: Path) -> str:
        """Returns the hash. There is no adapter to write."""
        return self.sha256()
