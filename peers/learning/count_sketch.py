"""Count sketches: gradients as a few hundred numbers that keep inner products (method 6).

Every coordinate is added, with a random sign, to one of m sums (Charikar et al., 2002). This costs one pass;
a dense projection would cost m. <Sx, Sy> is unbiased for <x, y>. Its variance is at most
(|x|^2 |y|^2 + <x, y>^2) / m. The run's seed and the block's identity determine sums and signs. Any two
devices can therefore compare sketches, also if one of them lacks a block.
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
    """Projects matrices of (block, group) to m = `size` numbers, equally on all devices with that seed."""

    def __init__(self, seed: int, layout: ModelLayout, size: int) -> None:
        self.size = size
        self._seed, self._layout = seed, layout
        self._drawn: dict[tuple[BlockKey, str], tuple[NDArray[np.int64], Vector]] = {}

    def sketch(self, key: BlockKey, group: str, matrix: Tensor) -> Vector:
        """The sketch, [m], linear in `matrix` ([rows_g, r_g]). Sketches of several blocks are added."""
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
