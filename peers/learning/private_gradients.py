"""Gradients of the own block with differential privacy (DP-SGD: Abadi et al., 2016; docs/privacy.md).

A step draws each example with the same probability (Poisson sampling), scales the gradient of each example
down to a norm of C, adds them up, and adds normal noise of deviation sigma C to each number. The rows of a
batch are independent in the model, so one backward pass has the gradients of all examples:

    dL_e/dB = s sum_t d_et phi(x_et)^T,    phi(x) = A^T x for LoRA
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from coordinator_free.seeded_random import generator
from peers.learning.backward_pass import Pass, backward
from peers.learning.privacy_account import PrivacyAccount
from peers.lora.activations import taps
from peers.lora.blocks import Block
from peers.tasks.batch import Batch
from peers.tasks.encode import IGNORED
from peers.tasks.loss import losses, predictions

if TYPE_CHECKING:
    from peers.config import DeviceConfig
    from peers.lora.adapted_model import Adapter
    from peers.lora.layout import ModelLayout


class PrivateGradients:
    """Computes the noisy gradient of a step. account: of the spent privacy; it names the random streams."""

    def __init__(
        self, adapter: Adapter, layout: ModelLayout, config: DeviceConfig, data: Batch, device_id: str
    ) -> None:
        self._adapter, self._layout, self._config = adapter, layout, config
        self._data, self._device_id = data, device_id
        self._expected = min(config.data.batch, len(data))  # examples in a sample
        planned = config.round.count * config.round.local_steps
        self.account = PrivacyAccount(config.privacy, self._expected / max(1, len(data)), planned)

    def step(self, own: Block, number: int) -> float:
        """Set `adapter.gradients` for the step with this number. No two steps may have the same one.

        Returns the mean loss of the sample, in nats per response token: it is private, and no other device
        may learn it. nan for an empty sample.
        """
        draw = self._stream(number)
        sample = torch.from_numpy(np.flatnonzero(draw.random(len(self._data)) < self.account.rate))
        loss = self._add_clipped(own, sample)
        for total in self._adapter.gradients.values():
            noise = torch.from_numpy(draw.standard_normal(tuple(total.shape), dtype=np.float32)).to(total)
            deviation = self.account.noise * self._config.privacy.clip
            total.add_(noise, alpha=deviation).div_(self._expected)
        return loss / len(sample) if len(sample) else math.nan

    def _stream(self, number: int) -> np.random.Generator:
        """Samples and noise of a step. A reader who knows them can subtract the noise."""
        if self._config.privacy.randomness == "secret":
            return np.random.Generator(np.random.Philox(key=secrets.randbits(128)))
        return generator(self._config.seed, self._device_id, "privacy", number)

    def _add_clipped(self, own: Block, sample: Tensor) -> float:
        """`adapter.gradients` <- the sum of the clipped gradients; returns the sum of the losses."""
        for gradient in self._adapter.gradients.values():
            gradient.zero_()
        loss = 0.0
        for rows in torch.split(sample, self._config.train.micro_batch or self._config.data.batch):
            if len(rows):
                loss += self._add_batch(own, self._data.rows(rows).to(self._adapter.device))
        return loss

    def _add_batch(self, own: Block, batch: Batch) -> float:
        with taps(self._adapter.model, self._layout) as seen:
            logits, wanted = predictions(self._adapter.model, batch)
            each = losses(logits, wanted) / (wanted != IGNORED).sum(dim=1).clamp(min=1)
            found = backward(each.sum(), seen, keep=False)
        for name, total in clipped_sums(found, own, self._adapter.scale, self._config.privacy.clip).items():
            group = self._layout.by_name[name].group
            self._adapter.gradients[group][self._layout.slices(group)[name]] += total
        return float(each.detach().sum())


def clipped_sums(passes: Mapping[str, Pass], own: Block, scale: float, clip: float) -> dict[str, Tensor]:
    """The sum of the examples' gradients w.r.t. B, each scaled down to a norm of `clip`; [k, r] by module.

    The norm is that over all modules together. An example whose gradient is not finite adds nothing: an
    error would tell others about the example.
    """
    inner = {name: own.features(name, passed.x.float()) for name, passed in passes.items()}
    squares: Tensor | float = 0.0
    for name, passed in passes.items():
        each = scale * torch.einsum("ntk,ntr->nkr", passed.d, inner[name])
        squares = squares + each.double().square().sum(dim=(1, 2))
    assert isinstance(squares, Tensor)
    finite = squares.isfinite()
    factors = torch.where(finite, clip / squares.sqrt().clamp(min=clip), 0.0).float()
    return {
        name: scale * torch.einsum("n,ntk,ntr->kr", factors, _only(finite, p.d), _only(finite, inner[name]))
        for name, p in passes.items()
    }


def _only(finite: Tensor, values: Tensor) -> Tensor:
    """[n, T, ·] with zeros for the other examples: 0 times a value that is not finite is not 0."""
    return torch.where(finite[:, None, None], values, 0.0)
