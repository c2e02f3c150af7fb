"""Gradients as a few hundred numbers, from which inner products can still be told (method 6).

A count sketch: every coordinate is added, with a random sign, to one of m sums. It costs one pass, where a
dense projection would cost m. <Sx, Sy> is unbiased for <x, y>, its variance at most
(|x|^2 |y|^2 + <x, y>^2) / m. Sums and signs are drawn from the run's seed and the block's identity, so that
devices that never spoke can compare, and one that lacks a block still agrees on all the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coordinator_free.identifiers import BlockKey
from coordinator_free.seeded_random import generator
from peers.lora.layout import ModelLayout

Vector = NDArray[np.float64]


class Sketcher:
    """Projects matrices of (block, group) to `size` numbers, the same way on every device with that seed."""

    def __init__(self, seed: int, layout: ModelLayout, size: int) -> None:
        self.size = size
        self._seed, self._layout = seed, layout
        self._drawn: dict[tuple[BlockKey, str], tuple[NDArray[np.int64], Vector]] = {}

    def sketch(self, key: BlockKey, group: str, matrix: Tensor) -> Vector:
        """[m], linear in `matrix` ([rows_g, r_g]). The sketch of several blocks is the sum of theirs."""
        sums, signs = self._draw(key, group)
        values = matrix.detach().to("cpu").double().numpy().ravel()
        return np.bincount(sums, weights=signs * values, minlength=self.size).astype(np.float64)

    def forget_block(self, key: BlockKey) -> None:
        """Free the sums and signs that were drawn for a deleted block."""
        self._drawn = {drawn: value for drawn, value in self._drawn.items() if drawn[0] != key}

    def _draw(self, key: BlockKey, group: str) -> tuple[NDArray[np.int64], Vector]:
        if (key, group) not in self._drawn:
            count = self._layout.rows(group) * self._layout.rank(group)
            draw = generator(self._seed, "sketch", str(key), group)
            sums = draw.integers(self.size, size=count)
            signs = 2.0 * draw.integers(2, size=count).astype(np.float64) - 1.0
            self._drawn[key, group] = sums, signs
        return self._drawn[key, group]
