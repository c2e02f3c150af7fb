"""Handover refit: before a block is dropped, the own block takes over a part of its output (method 4).

Per module, ridge regression of the dropped block's output on the own block's features, over the own data and
with all blocks in the model: dB = B_u (A_u^T S A_i) (A_i^T S A_i + l I)^-1, with S = E[x x^T] and
l = RIDGE tr(A_i^T S A_i) / r. Other kinds of adapter have phi_u(x) and phi_i(x) for A_u^T x and A_i^T x.

The refit reads B_u once. This weakens the promise that nothing of u is used, so it is off by default.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from peers.lora.activations import taps
from peers.lora.blocks import Block
from peers.lora.layout import ModelLayout
from peers.tasks.batch import Batch

RIDGE = 1e-2


@torch.no_grad()
def handover_refit(
    model: Any, layout: ModelLayout, own: Block, gone: Block, batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """dB by group, float32 [rows_g, r_g]: with B + dB, `own` replaces the output of `gone` on these batches.

    model: the PEFT model with both blocks in it. Use the result once: repeated refits diverge. Raises
    InputError for a gated kind of adapter.
    """
    layout.kind.check_matrix("a handover refit")
    grams: dict[str, Tensor] = {}  # A_i^T S A_i by module, times the number of tokens
    crosses: dict[str, Tensor] = {}  # A_u^T S A_i by module, times the number of tokens
    for batch in batches:
        with taps(model, layout) as seen:
            model(**batch.inputs())
        for name, tap in seen.items():
            x = tap.x[batch.counted(tap.x.shape[1])].double()
            mine, other = own.features(name, x), gone.features(name, x)
            grams[name] = grams.get(name, 0.0) + mine.T @ mine
            crosses[name] = crosses.get(name, 0.0) + other.T @ mine
    found = {group: torch.zeros_like(values) for group, values in own.data.items()}
    for shape in layout.modules if grams else ():
        gram, rows = grams[shape.name], layout.slices(shape.group)[shape.name]
        ridge = RIDGE * gram.trace() / len(gram) + torch.finfo(gram.dtype).tiny
        regular = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        wanted = gone.data[shape.group][rows].double() @ crosses[shape.name]
        found[shape.group][rows] = torch.linalg.solve(regular, wanted.T).T.float()
    return found
