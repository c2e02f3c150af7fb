"""Elastic weight consolidation, a baseline: own steps that keep what mattered before the event.

Source: Kirkpatrick et al. (2017), eq. 3: the loss gets (lambda / 2) sum_i F_i (B_i - B*_i)^2, with the
diagonal F of the Fisher information at the anchor B*. It deletes nothing. A device keeps F and B*: twice its
own block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ElasticWeights:
    """importance: F, anchor: B*, both by group, [rows_g, r_g]. strength: lambda."""

    importance: Mapping[str, Tensor]
    anchor: Mapping[str, Tensor]
    strength: float

    def pull(self, group: str, values: Tensor) -> Tensor:
        """The gradient of the penalty at `values`, [rows_g, r_g]."""
        return self.strength * self.importance[group] * (values - self.anchor[group])

    @property
    def stored_bytes(self) -> int:
        """What the device keeps until the correction ends."""
        kept = (*self.importance.values(), *self.anchor.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def squared_shares(z: Tensor, d: Tensor, scale: float) -> Tensor:
    """Sum over examples of the squared gradient w.r.t. B of one module, [k, r].

    z: features phi(x), [n, T, r]. d: gradients of the mean loss of the n examples w.r.t. the outputs,
    [n, T, k].
    """
    shares = scale * len(z) * (d.transpose(1, 2) @ z)
    return shares.square().sum(dim=0)
