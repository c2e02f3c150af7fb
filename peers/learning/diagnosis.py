"""Measurements of the own loss for the residuals of a correction (method 6).

One forward and one backward pass give all numbers. No weight gets a gradient. Let W = W0 + s sum_u B_u A_u^T
be the dense weight of a module, x its input and d the gradient of its output:

    dL/dB_u = s (dL/dW) A_u = s (sum_t d_t x_t^T) A_u = s sum_t d_t (A_u^T x_t)^T

This gives the gradients of all blocks, also of foreign blocks that are folded into W, and never computes
dL/dW (k x d numbers). The rows of a batch are independent in the model. The sum over the tokens of one
example is therefore the gradient of this example, without a pass of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from coordinator_free.correction.residuals import Observables, report_bytes
from coordinator_free.identifiers import BlockKey
from peers.learning.count_sketch import Sketcher, Vector
from peers.lora.activations import Tap, taps
from peers.lora.blocks import Block
from peers.lora.layout import ModelLayout, ModuleShape
from peers.tasks.encode import IGNORED, Encoded
from peers.tasks.loss import mean_loss, predictions

if TYPE_CHECKING:
    from torch import nn

LEAST_MICROBATCHES = (
    16  # lambda_max(F) of a single gradient is its energy: S_g would have the same factor twice
)


@dataclass(frozen=True, slots=True)
class Options:
    """microbatch: examples per micro-batch, whose mean gradient counts as one; 1: per-example gradients.

    labels: of the Fisher information. "data": the empirical Fisher. "model": drawn from the model's
    prediction, the true Fisher, with a second backward pass. Gradients and sketches always use the data.
    """

    microbatch: int = 1
    labels: Literal["data", "model"] = "data"


class Cost(NamedTuple):
    """flops: matrix products of adapted modules. seconds: wall time. bytes: one report on one link."""

    flops: float
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Of a group. energy: ||g_i||^2. curvature: lambda_max(F_g). sketch: of g_i. blocks: energy by block."""

    energy: float
    curvature: float
    sketch: Vector
    blocks: dict[BlockKey, float]

    def observables(
        self, mu: float, eta: float, disagreement: float, smoothness: float | None = None
    ) -> Observables:
        """Combine with the other observables of the group (residuals.py). smoothness None: curvature."""
        smooth = self.curvature if smoothness is None else smoothness
        return Observables(self.energy, self.curvature, smooth, mu, eta, disagreement, self.sketch)


@dataclass(frozen=True, slots=True, eq=False)
class Diagnosis:
    """loss: of the batch, mean nats per response token. groups: in the layout's order. cost: of the pass."""

    loss: float
    groups: dict[str, Measured]
    cost: Cost


def diagnose(
    model: nn.Module,
    layout: ModelLayout,
    scale: float,
    blocks: Mapping[BlockKey, Block],
    batch: Encoded,
    sketcher: Sketcher,
    options: Options,
    draw: np.random.Generator,
) -> Diagnosis:
    """Measure a batch on `model`, the PEFT model with all `blocks` in it, own and foreign, folded or apart.

    draw: for labels from the model. Parameters and their gradients stay unchanged. Raises ValueError for
    fewer than 16 micro-batches (of more than one example), and without blocks or examples.
    """
    start = time.perf_counter()
    batch = _trimmed(batch, options)
    if not blocks:
        raise ValueError("a device without blocks has nothing to diagnose")
    batch = batch.to(next(model.parameters()).device)
    with taps(model, layout) as seen:
        logits, wanted = predictions(model, batch)
        loss = mean_loss(logits, wanted)
        drawn = mean_loss(logits, _sampled(logits, wanted, draw)) if options.labels == "model" else None
        gradients = _backward(loss, seen, keep=drawn is not None)
        fisher = gradients if drawn is None else _backward(drawn, seen, keep=False)
    totals = {group: _Total() for group in layout.groups}
    for shape in layout.modules:
        _add_module(totals[shape.group], shape, scale, blocks, gradients[shape.name], fisher, options)
    groups = {g: _measured(layout, g, total, list(blocks), sketcher) for g, total in totals.items()}
    flops = _flops(layout, blocks, batch, 2 if drawn is None else 3, options.microbatch)
    cost = Cost(flops, time.perf_counter() - start, report_bytes(len(groups), sketcher.size))
    return Diagnosis(float(loss.detach()), groups, cost)


def step_flops(layout: ModelLayout, tokens: int) -> float:
    """Matrix products of one local step in adapted modules, for comparison with `Cost.flops`."""
    dense = sum(m.in_features * m.out_features for m in layout.modules)
    own = sum(m.rank * (m.in_features + m.out_features) for m in layout.modules)
    return 2.0 * tokens * (2 * dense + 3 * own)


# -- passes ----------------------------------------------------------------------------------------------
class Pass(NamedTuple):
    """x: [n, T, d]; d: dL/dy, [n, T, k]."""

    x: Tensor
    d: Tensor


def passes(model: Any, layout: ModelLayout, batch: Encoded) -> dict[str, Pass]:
    """Input and output gradient of each module, from one forward and one backward pass of the loss."""
    with taps(model, layout) as seen:
        return _backward(mean_loss(*predictions(model, batch)), seen, keep=False)


def _backward(loss: Tensor, seen: Mapping[str, Tap], keep: bool) -> dict[str, Pass]:
    found = torch.autograd.grad(loss, [tap.y for tap in seen.values()], retain_graph=keep)
    return {name: Pass(tap.x, d.float()) for (name, tap), d in zip(seen.items(), found, strict=True)}


@torch.no_grad()
def _sampled(logits: Tensor, wanted: Tensor, draw: np.random.Generator) -> Tensor:
    """`wanted` with each response token replaced by a draw from the model's prediction."""
    counts = wanted != IGNORED
    cumulated = logits[counts].double().softmax(dim=-1).cumsum(dim=-1)
    u = torch.from_numpy(draw.random(len(cumulated))).to(cumulated.device) * cumulated[:, -1]
    sampled = wanted.clone()
    sampled[counts] = (cumulated < u[:, None]).sum(dim=-1).clamp_(max=logits.shape[-1] - 1)
    return sampled


# -- from passes to gradients ----------------------------------------------------------------------------
@dataclass(slots=True)
class _Total:
    """Sums of a group. gram: [m, m], of the micro-batches' loss shares. gradients: g_i, one per module."""

    gram: Tensor | float = 0.0
    gradients: list[Tensor] = field(default_factory=list)


def _add_module(
    total: _Total,
    shape: ModuleShape,
    scale: float,
    blocks: Mapping[BlockKey, Block],
    passed: Pass,
    fisher: Mapping[str, Pass],
    options: Options,
) -> None:
    bases = torch.cat([block.bases[shape.name] for block in blocks.values()], dim=1)
    shares = _shares(passed, bases, options.microbatch)
    total.gradients.append(scale * shares.sum(dim=0))
    counted = (
        shares if fisher[shape.name] is passed else _shares(fisher[shape.name], bases, options.microbatch)
    )
    rows = counted.flatten(1)
    total.gram = total.gram + scale**2 * (rows @ rows.T).double()


def _shares(passed: Pass, bases: Tensor, microbatch: int) -> Tensor:
    """Each micro-batch's share of the gradient w.r.t. B of all N blocks, divided by s: [m, k, N r]."""
    count = len(passed.x) // microbatch
    z, d = (passed.x.float() @ bases).flatten(0, 1), passed.d.flatten(0, 1)
    return d.view(count, -1, d.shape[1]).transpose(1, 2) @ z.view(count, -1, z.shape[1])


def _measured(
    layout: ModelLayout, group: str, total: _Total, keys: list[BlockKey], sketcher: Sketcher
) -> Measured:
    """m micro-batches with loss shares G_c: grad l_c = m G_c and F = (1/m) sum_c grad l_c grad l_c^T."""
    assert isinstance(total.gram, Tensor)
    curvature = len(total.gram) * float(torch.linalg.eigvalsh(total.gram)[-1])
    columns = torch.split(torch.cat(total.gradients), layout.rank(group), dim=1)
    energies = {key: float(part.double().square().sum()) for key, part in zip(keys, columns, strict=True)}
    sketches = [sketcher.sketch(key, group, part) for key, part in zip(keys, columns, strict=True)]
    return Measured(sum(energies.values()), max(curvature, 0.0), np.sum(sketches, axis=0), energies)


def _trimmed(batch: Encoded, options: Options) -> Encoded:
    """The batch, cut to a whole number of micro-batches."""
    count = len(batch) // options.microbatch
    if count < (LEAST_MICROBATCHES if options.microbatch > 1 else 1):
        raise ValueError(
            f"{len(batch)} examples make {count} micro-batches of {options.microbatch}; "
            f"{LEAST_MICROBATCHES} are needed"
        )
    return batch.rows(torch.arange(count * options.microbatch))


def _flops(
    layout: ModelLayout, blocks: Mapping[BlockKey, Block], batch: Encoded, passes: int, microbatch: int
) -> float:
    """Operations of forward, backward of activations, shares and Gram matrix of each module."""
    n, length = batch.input_ids.shape
    flops = 0.0
    for m in layout.modules:
        columns = m.rank * len(blocks)
        dense = n * length * m.in_features * m.out_features * passes
        shares = n * length * columns * (m.in_features + m.out_features)
        flops += 2.0 * (dense + (passes - 1) * shares + (n // microbatch) ** 2 * m.out_features * columns)
    return flops
