"""The work and the learner of `unweft bench rounds`: one matrix, one small SGD step a round."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peers.blocks import BlockKey
from peers.learner import Receipt, TrainResult

ROWS, RANK = 36_864, 8  # 1,179,648 bytes of fp32
PAYLOAD_BYTES = 4 * ROWS * RANK
GROUP = "early"
BATCH, RATE = 2, 1e-3


class SmallStep:
    """Linear regression with its own data: the same for all contenders."""

    def __init__(self, device: str) -> None:
        draw = torch.Generator().manual_seed(sum(device.encode()))
        self._inputs = torch.randn(BATCH, ROWS, generator=draw) / ROWS**0.5
        self._targets = torch.randn(BATCH, RANK, generator=draw)
        self.weights = torch.zeros(ROWS, RANK)

    def step(self) -> float:
        """One step of SGD; the loss before it."""
        error = self._inputs @ self.weights - self._targets
        self.weights.sub_(self._inputs.T @ error, alpha=RATE)
        return float(error.square().mean())


class BenchLearner:
    """What peers.driver asks of a learner in `paper-literal`: the own block alone is kept and trained."""

    groups = (GROUP,)

    def __init__(self, device: str) -> None:
        self._work = SmallStep(device)
        self._own: BlockKey | None = None
        self.layout = self.fingerprint = self

    def rows(self, group: str) -> int:
        return ROWS

    def rank(self, group: str) -> int:
        return RANK

    def to_dict(self) -> dict[str, Any]:
        return {"bench": "rounds"}

    def difference(self, fingerprint: Mapping[str, Any]) -> str | None:
        return None if fingerprint == self.to_dict() else "another benchmark"

    def has(self, key: BlockKey) -> bool:
        return key == self._own

    def add_block(self, key: BlockKey, slot: int) -> None:
        """Others' blocks are not kept: nothing here computes with them."""

    def set_own(self, key: BlockKey, slot: int, carry: BlockKey | None = None) -> None:
        self._own = key

    def delete_block(self, key: BlockKey) -> Receipt:
        return Receipt("", "")

    def read(self, key: BlockKey, group: str) -> Tensor:
        return self._work.weights.clone()

    def write(self, key: BlockKey, group: str, values: Tensor) -> None:
        self._work.weights.copy_(values)

    def scale_own_move(self, omega: float) -> None:
        """Nothing is damped in this mode."""

    def train(self, round: int, steps: int, rehearse: bool, settings: object = None) -> TrainResult:
        start = time.perf_counter()
        losses = [self._work.step() for _ in range(steps)]
        return TrainResult(losses[-1], steps, time.perf_counter() - start)

    def norms(self) -> dict[str, dict[str, float]]:
        return {str(self._own): {GROUP: float(self._work.weights.norm())}}

    def sha256(self) -> str:
        return ""

    def snapshot(self, path: Path, meta: Mapping[str, str], settled: bool = False) -> None:
        """The benchmark asks for none."""

    def export(self, path: Path) -> str:
        return ""
