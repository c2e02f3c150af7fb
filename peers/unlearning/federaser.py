"""FedEraser without a server, a baseline: survivors repeat the training from a stored history.

Source: Liu et al. (2021), eq. 1 to 3. Every device stores its own moves of every `interval`-th round. After a
leave, all survivors begin again at B = 0. For each stored round they train a few steps, and go as far as the
stored move in the direction of the new one. The history grows with the run, and is on disk until it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Moves = dict[str, Tensor]  # of the own block, by group, [rows_g, r_g]


@dataclass
class History:
    """The stored moves of one device. interval: rounds between two stored ones."""

    interval: int
    rounds: list[Moves] = field(default_factory=list)

    def keep(self, round_: int, moves: Mapping[str, Tensor]) -> None:
        """Store the moves of a round, if it is one of those to store."""
        if round_ % self.interval == 0:
            self.add(moves)

    def add(self, moves: Mapping[str, Tensor]) -> None:
        """Store these moves."""
        self.rounds.append({group: move.detach().clone() for group, move in moves.items()})

    @property
    def stored_bytes(self) -> int:
        """What the device keeps on its disk."""
        return stored_bytes(self.rounds)


def stored_bytes(rounds: Iterable[Moves]) -> int:
    """The bytes of the stored moves of some rounds."""
    return sum(m.numel() * m.element_size() for moves in rounds for m in moves.values())


def calibrated(stored: Tensor, new: Tensor) -> Tensor:
    """||stored|| new / ||new||: the length of the stored move in the direction of the new one (eq. 3)."""
    norm = float(torch.linalg.vector_norm(new))
    return torch.zeros_like(new) if norm == 0.0 else new * (float(torch.linalg.vector_norm(stored)) / norm)
