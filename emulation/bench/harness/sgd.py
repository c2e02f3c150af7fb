"""The local step of `unweft bench rounds`: one SGD step on one matrix. It needs torch only."""

from __future__ import annotations

import torch

ROWS, RANK = 36_864, 8
PAYLOAD_BYTES = 4 * ROWS * RANK  # 1,179,648: fp32
BATCH, RATE = 2, 1e-3


class SmallStep:
    """Linear regression on the data of one device, the same for all contenders."""

    def __init__(self, device: str) -> None:
        draw = torch.Generator().manual_seed(sum(device.encode()))
        self._inputs = torch.randn(BATCH, ROWS, generator=draw) / ROWS**0.5
        self._targets = torch.randn(BATCH, RANK, generator=draw)
        self.weights = torch.zeros(ROWS, RANK)

    def step(self) -> float:
        """One step of SGD. Returns the loss before the step."""
        error = self._inputs @ self.weights - self._targets
        self.weights.sub_(self._inputs.T @ error, alpha=RATE)
        return float(error.square().mean())
