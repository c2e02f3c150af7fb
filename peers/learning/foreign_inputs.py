"""Second moments of module inputs of other devices, for steps that disturb these devices little (method 4).

The output of a module changes by s dB phi_i(x), with phi_i(x) = A_i^T x for LoRA. A step of device i disturbs
device j where E_j[phi_i(x) phi_i(x)^T], for LoRA A_i^T E_j[x x^T] A_i, is large. Each neighbour j sends this
matrix, r x r for each module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peers.lora.activations import taps
from peers.lora.blocks import Block
from peers.lora.layout import ModelLayout
from peers.tasks.batch import Batch

Moments = dict[str, Tensor]  # by module, [r, r] float64 with trace r


@torch.no_grad()
def second_moments(
    model: Any, layout: ModelLayout, blocks: Mapping[Any, Block], batches: Iterable[Batch]
) -> dict[Any, Moments]:
    """E[phi_u(x) phi_u(x)^T] of each module for each of the blocks, over the tokens of `batches`. Each matrix
    is scaled to the trace r."""
    sums: dict[Any, Moments] = {key: {} for key in blocks}
    for batch in batches:
        with taps(model, layout) as seen:
            model(**batch.inputs())
        for name, tap in seen.items():
            x = tap.x[batch.counted(tap.x.shape[1])].float()
            for key, block in blocks.items():
                z = block.features(name, x).double()
                sums[key][name] = sums[key].get(name, 0.0) + z.T @ z
    return {key: {name: scaled(m) for name, m in found.items()} for key, found in sums.items()}


def scaled(matrix: Tensor) -> Tensor:
    """The matrix with trace r. One without a trace becomes the identity."""
    trace, eye = matrix.trace(), torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return matrix * (len(matrix) / trace) if trace > 0 else eye


def pack_moments(moments: Moments, layout: ModelLayout) -> bytes:
    """The upper triangles in the layout's order, float32."""
    rows = [moments[m.name][tuple(torch.triu_indices(m.rank, m.rank))] for m in layout.modules]
    return bytes(torch.cat(rows).to("cpu", torch.float32).numpy().astype("<f4").tobytes())


def moments_bytes(layout: ModelLayout) -> int:
    """The size of packed moments."""
    return 4 * sum(m.rank * (m.rank + 1) // 2 for m in layout.modules)


def unpack_moments(packed: bytes, layout: ModelLayout, device: torch.device) -> Moments | None:
    """The inverse of `pack_moments`. None if the bytes are not second moments of this layout.

    Another device has sent the bytes. Accepted matrices are finite and positive semidefinite up to rounding,
    and have the trace r. So their sender can only choose directions.
    """
    if len(packed) != moments_bytes(layout):
        return None
    values = torch.from_numpy(np.frombuffer(packed, dtype="<f4").astype(np.float64))
    if not (values.abs() < 1e6).all():  # False for NaN
        return None
    found: Moments = {}
    at = 0
    for module in layout.modules:
        r, size = module.rank, module.rank * (module.rank + 1) // 2
        matrix = torch.zeros(r, r, dtype=torch.float64)
        matrix[tuple(torch.triu_indices(r, r))] = values[at : at + size]
        matrix = matrix + matrix.triu(1).T
        if matrix.trace() <= 0 or torch.linalg.eigvalsh(matrix)[0] < -1e-3 * matrix.trace():
            return None
        found[module.name] = scaled(matrix).to(device)
        at += size
    return found
