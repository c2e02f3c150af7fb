"""Measurements of the own loss for the residuals of a correction (method 6).

One forward and one backward pass give all numbers. No weight gets a gradient. Let x be the input of a module
and d the gradient of its output W0 x + s sum_u B_u phi_u(x), with phi_u(x) = A_u^T x for LoRA:

    dL/dB_u = s sum_t d_t phi_u(x_t)^T

This gives the gradients of all blocks, also of foreign blocks that are folded into the dense weight W, and
never computes dL/dW (k x d numbers). The rows of a batch are independent in the model. The sum over the
tokens of one example is therefore the gradient of this example, without a pass of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from coordinator_free.correction import masking
from coordinator_free.correction.residuals import Observables, report_bytes, sampling_noise
from coordinator_free.identifiers import BlockKey
from peers.learning.backward_pass import Pass, backward
from peers.learning.count_sketch import Sketcher, Vector
from peers.learning.curvature import GroupTotal, add_module, largest_eigenvalue, smoothness
from peers.lora.activations import taps
from peers.lora.blocks import Block
from peers.lora.layout import ModelLayout
from peers.tasks.batch import Batch
from peers.tasks.encode import IGNORED
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
    population: examples that the batch was drawn from; None: the batch is all of them.
    masked: whether the report is masked, for its size.
    """

    microbatch: int = 1
    labels: Literal["data", "model"] = "data"
    population: int | None = None
    masked: bool = False


class Cost(NamedTuple):
    """flops: matrix products of adapted modules. seconds: wall time. bytes: one report on one link."""

    flops: float
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Of a group. energy: ||g_i||^2 of the batch. noise: what the sampling of the batch adds to it.
    curvature: lambda_max(F_g). smoothness: L-hat. sketch: of g_i. blocks: energy by block.
    """

    energy: float
    noise: float
    curvature: float
    smoothness: float
    sketch: Vector
    blocks: dict[BlockKey, float]

    def observables(self, gap: float, rate: float | None, eta: float, copies: Vector) -> Observables:
        """Combine with the other observables of the group (residuals.py)."""
        own = self.energy, self.noise, self.curvature, self.smoothness
        return Observables(*own, gap, rate, eta, self.sketch, copies)


@dataclass(frozen=True, slots=True, eq=False)
class Diagnosis:
    """loss: of the batch, mean nats per response token. groups: in the layout's order. cost: of the pass.

    gap: the loss above its floor. copies: count sketch of the copies of all blocks, by group.
    """

    loss: float
    groups: dict[str, Measured]
    cost: Cost
    gap: float = 0.0
    copies: dict[str, Vector] = field(default_factory=dict)

    def with_smoothness(self, smoothness: float) -> Diagnosis:
        """With another L-hat, for all groups."""
        groups = {name: replace(group, smoothness=smoothness) for name, group in self.groups.items()}
        return replace(self, groups=groups)


def diagnose(
    model: nn.Module,
    layout: ModelLayout,
    scale: float,
    blocks: Mapping[BlockKey, Block],
    batch: Batch,
    sketcher: Sketcher,
    options: Options,
    draw: np.random.Generator,
) -> Diagnosis:
    """Measure a batch on `model`, the PEFT model with all `blocks` in it, own and foreign, folded or apart.

    draw: for labels from the model. Parameters and their gradients stay unchanged. Raises ValueError for
    fewer than 16 micro-batches (of more than one example), and without blocks or examples, and InputError for
    a gated kind of adapter.
    """
    layout.kind.check_matrix("a diagnosis")
    start = time.perf_counter()
    batch = _trimmed(batch, options)
    if not blocks:
        raise ValueError("a device without blocks has nothing to diagnose")
    batch = batch.to(next(model.parameters()).device)
    with taps(model, layout) as seen:
        logits, wanted = predictions(model, batch)
        loss = mean_loss(logits, wanted)
        drawn = mean_loss(logits, _sampled(logits, wanted, draw)) if options.labels == "model" else None
        gradients = backward(loss, seen, keep=drawn is not None)
        fisher = gradients if drawn is None else backward(drawn, seen, keep=False)
    totals = {group: GroupTotal() for group in layout.groups}
    for shape in layout.modules:
        passed, total = gradients[shape.name], totals[shape.group]
        add_module(total, shape, scale, blocks, passed, fisher, options.microbatch)
    population = None if options.population is None else options.population // options.microbatch
    groups = {g: _measured(layout, g, t, list(blocks), sketcher, population) for g, t in totals.items()}
    flops = _flops(layout, blocks, gradients, 2 if drawn is None else 3, options.microbatch)
    size = (masking.report_bytes if options.masked else report_bytes)(len(groups), sketcher.size)
    cost = Cost(flops, time.perf_counter() - start, size)
    return Diagnosis(float(loss.detach()), groups, cost)


def step_flops(layout: ModelLayout, tokens: int) -> float:
    """Matrix products of one local step in adapted modules, for comparison with `Cost.flops`."""
    dense = sum(m.in_features * m.out_features for m in layout.modules)
    own = sum(m.rank * (m.in_features + m.out_features) for m in layout.modules)
    return 2.0 * tokens * (2 * dense + 3 * own)


@torch.no_grad()
def _sampled(logits: Tensor, wanted: Tensor, draw: np.random.Generator) -> Tensor:
    """`wanted` with each response token replaced by a draw from the model's prediction."""
    counts = wanted != IGNORED
    cumulated = logits[counts].double().softmax(dim=-1).cumsum(dim=-1)
    u = torch.from_numpy(draw.random(len(cumulated))).to(cumulated.device) * cumulated[:, -1]
    sampled = wanted.clone()
    sampled[counts] = (cumulated < u[:, None]).sum(dim=-1).clamp_(max=logits.shape[-1] - 1)
    return sampled


def _measured(
    layout: ModelLayout,
    group: str,
    total: GroupTotal,
    keys: list[BlockKey],
    sketcher: Sketcher,
    population: int | None,
) -> Measured:
    assert isinstance(total.gram, Tensor) and isinstance(total.shares, Tensor)
    columns = torch.split(torch.cat(total.gradients), layout.rank(group), dim=1)
    energies = {key: float(part.double().square().sum()) for key, part in zip(keys, columns, strict=True)}
    sketches = [sketcher.sketch(key, group, part) for key, part in zip(keys, columns, strict=True)]
    shares = total.shares.cpu().numpy()
    return Measured(
        energy=sum(energies.values()),
        noise=sampling_noise(shares, len(shares) if population is None else population),
        curvature=largest_eigenvalue(total.gram, population),
        smoothness=smoothness(total.gram, population),
        sketch=np.sum(sketches, axis=0),
        blocks=energies,
    )


def _trimmed(batch: Batch, options: Options) -> Batch:
    """The batch, cut to a whole number of micro-batches."""
    count = len(batch) // options.microbatch
    if count < (LEAST_MICROBATCHES if options.microbatch > 1 else 1):
        raise ValueError(
            f"{len(batch)} examples make {count} micro-batches of {options.microbatch}; "
            f"{LEAST_MICROBATCHES} are needed"
        )
    return batch.rows(torch.arange(count * options.microbatch))


def _flops(
    layout: ModelLayout,
    blocks: Mapping[BlockKey, Block],
    gradients: Mapping[str, Pass],
    passes: int,
    microbatch: int,
) -> float:
    """Operations of forward, backward of activations, shares and Gram matrix of each module."""
    flops = 0.0
    for m in layout.modules:
        n, length = gradients[m.name].x.shape[:2]
        columns = m.rank * len(blocks)
        dense = n * length * m.in_features * m.out_features * passes
        shares = n * length * columns * (m.in_features + m.out_features)
        flops += 2.0 * (dense + (passes - 1) * shares + (n // microbatch) ** 2 * m.out_features * columns)
    return flops
