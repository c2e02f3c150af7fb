"""Inputs and output gradients of the adapted modules, from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peers.lora.activations import Tap, taps
from peers.lora.convolution import outputs_of
from peers.lora.layout import ModelLayout
from peers.tasks.batch import Batch
from peers.tasks.loss import mean_loss, predictions


class Pass(NamedTuple):
    """x: [n, T, d]; d: dL/dy, [n, T, k]."""

    x: Tensor
    d: Tensor


def passes(model: Any, layout: ModelLayout, batch: Batch) -> dict[str, Pass]:
    """Input and output gradient of each module, from one forward and one backward pass of the loss."""
    with taps(model, layout) as seen:
        return backward(mean_loss(*predictions(model, batch)), seen, keep=False)


def backward(loss: Tensor, seen: Mapping[str, Tap], keep: bool) -> dict[str, Pass]:
    """The passes of the modules whose inputs and outputs `seen` holds."""
    found = torch.autograd.grad(loss, [tap.y for tap in seen.values()], retain_graph=keep)
    named = zip(seen.items(), found, strict=True)
    return {name: Pass(tap.x, outputs_of(d.float())) for (name, tap), d in named}
