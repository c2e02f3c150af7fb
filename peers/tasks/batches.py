"""The examples of a local step: a function of (seed, shard, round, step) alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from coordinator_free.seeded_random import generator
from peers.tasks.batch import Batch


def batch_generator(seed: int, shard: str, round_number: int, step: int) -> np.random.Generator:
    """The random stream of one step. Nothing else draws from it."""
    return generator(seed, shard, round_number, step)


def sample_batch(encoded: Batch, size: int, draw: np.random.Generator) -> Tensor:
    """Indices of `size` different examples, [size] int64. If there are no more examples: all, in order."""
    n = len(encoded)
    if n <= size:
        return torch.arange(n)
    return torch.from_numpy(draw.choice(n, size=size, replace=False).astype(np.int64))
