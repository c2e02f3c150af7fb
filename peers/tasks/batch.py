"""The protocol of examples as tensors: all that training, measurements and scores know of the data."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor


class Batch(Protocol):
    """n examples as tensors, all on one device. truncated: how many of them were cut."""

    @property
    def truncated(self) -> int: ...

    @property
    def logit_shift(self) -> Tensor | None:
        """What the loss adds to the logits of each class, [V]; None: nothing."""
        ...

    def __len__(self) -> int: ...

    def rows(self, indices: Tensor) -> Self:
        """The examples at `indices`, [m] int64."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """A copy on another device."""
        ...

    def inputs(self) -> dict[str, Tensor]:
        """The arguments of the model's forward pass, by name."""
        ...

    def wanted(self) -> Tensor:
        """The class that each vector of logits has to predict, [n, L] int64; IGNORED: it has no loss."""
        ...

    def lengths(self) -> Tensor:
        """The number of positions of each example, padding not counted, [n] int64."""
        ...

    def counted(self, positions: int) -> Tensor:
        """Which inputs of a module are data and no padding, bool [n, positions]."""
        ...
