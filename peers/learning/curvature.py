"""The curvature lambda_max(F_g) of a layer group, from per-example or micro-batch gradients (method 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from coordinator_free.identifiers import BlockKey, Part
from peers.learning.backward_pass import Pass
from peers.lora.blocks import Block, BlockSet
from peers.lora.kinds import AdapterKind
from peers.lora.layout import ModuleShape

LEAST_MOVE = 1e-2  # of the blocks: a shorter displacement would drown in rounding


@dataclass(slots=True)
class GroupTotal:
    """Sums of a group. gram: [m, m], of the micro-batches' shares with the labels of the Fisher information.
    shares: [m, m], of those with the labels of the data. gradients: g_i, one per module.
    """

    gram: Tensor | float = 0.0
    shares: Tensor | float = 0.0
    gradients: list[Tensor] = field(default_factory=list)


def add_module(
    total: GroupTotal,
    shape: ModuleShape,
    scale: float,
    blocks: Mapping[BlockKey, Block],
    passed: Pass,
    fisher: Mapping[str, Pass],
    microbatch: int,
) -> None:
    """Add one module to the sums of its group. `fisher`: passes with the labels of the Fisher information."""
    bases = torch.cat([block.bases[shape.name] for block in blocks.values()], dim=1)
    kind = next(iter(blocks.values())).kind
    shares = _shares(passed, kind, bases, microbatch)
    total.gradients.append(scale * shares.sum(dim=0))
    of_data = _gram(shares, scale)
    same = fisher[shape.name] is passed
    total.shares = total.shares + of_data
    drawn = of_data if same else _gram(_shares(fisher[shape.name], kind, bases, microbatch), scale)
    total.gram = total.gram + drawn


def _gram(shares: Tensor, scale: float) -> Tensor:
    rows = shares.flatten(1)
    return scale**2 * (rows @ rows.T).double()


def _shares(passed: Pass, kind: AdapterKind, bases: Tensor, microbatch: int) -> Tensor:
    """Each micro-batch's share of the gradient w.r.t. B of all N blocks, divided by s: [m, k, N r]."""
    count = len(passed.x) // microbatch
    z, d = kind.features(passed.x.float(), bases).flatten(0, 1), passed.d.flatten(0, 1)
    return d.view(count, -1, d.shape[1]).transpose(1, 2) @ z.view(count, -1, z.shape[1])


def largest_eigenvalue(gram: Tensor, population: int | None = None) -> float:
    """lambda_max(F_g) from the Gram matrix of m micro-batches' loss shares G_c (method 6).

    grad l_c = m G_c and F = (1/m) sum_c grad l_c grad l_c^T. Its eigenvalues are m times those of the Gram
    matrix. population: number of micro-batches that the m were drawn from; None: m. A sample inflates the
    largest eigenvalue by about the mean of the others (Yata and Aoshima, 2012); this is subtracted.
    """
    m = len(gram)
    largest = max(m * float(torch.linalg.eigvalsh(gram)[-1]), 0.0)
    if m < 2 or population is None or population <= m:
        return largest
    others = max(m * float(gram.trace()) - largest, 0.0)
    return max(largest - others / (m - 1) * (1 - m / population), 0.0)


def smoothness(gram: Tensor, population: int | None = None) -> float:
    """L-hat: lambda_max of the covariance of the m loss gradients, from the same Gram matrix.

    F_g is this covariance plus g g^T. Far from the optimum g is long. lambda_max(F_g) is then no curvature of
    the loss.
    """
    m = len(gram)
    if m < 2:
        return largest_eigenvalue(gram)
    centred = gram - gram.mean(dim=0) - gram.mean(dim=1, keepdim=True) + gram.mean()
    return largest_eigenvalue(centred, population) * m / (m - 1)


def curvature_along(
    blocks: BlockSet, moves: Mapping[Part, Tensor], loss: float, loss_now: Callable[[], float]
) -> float | None:
    """L-hat as a secant: d^T H d / ||d||^2 for a displacement d of the blocks, from the loss on both sides.

    moves: d by part, [rows_g, r_g]. loss: at the blocks as they are, which they are again afterwards.
    loss_now: measures the loss at the blocks as they are then. None without a displacement. lambda_max bounds
    this curvature, but no displacement of a trained model lies in that direction.
    """
    kept = {p: blocks[p.block].data[p.group].detach().clone() for p in moves if p.block in blocks}
    size2 = sum(float(moves[part].square().sum()) for part in kept)
    if not size2:
        return None
    whole2 = sum(float(values.square().sum()) for values in kept.values())
    far = max(1.0, LEAST_MOVE * math.sqrt(whole2 / size2))
    both = 0.0
    for by in (far, -far, 0.0):
        for part, values in kept.items():
            blocks.set(part.block, part.group, values + by * moves[part].to(values))
        both += loss_now() if by else 0.0
    return max(both - 2 * loss, 0.0) / (far * far * size2)
