"""Which examples a local step trains on: a function of (seed, shard, round, step) and of nothing else."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from peers.tasks.encode import Encoded


def batch_generator(seed: int, shard: str, round_number: int, step: int) -> np.random.Generator:
    """A generator that nothing else draws from: Philox, keyed by a hash of all four."""
    digest = sha256(f"{seed}/{shard}/{round_number}/{step}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))


def sample_batch(encoded: Encoded, size: int, generator: np.random.Generator) -> Tensor:
    """Indices of `size` different examples, [size] int64; all of them, in order, when there are no more."""
    n = len(encoded)
    if n <= size:
        return torch.arange(n)
    return torch.from_numpy(generator.choice(n, size=size, replace=False).astype(np.int64))
