"""The own copies of foreign blocks as the neighbours assume them: the last one sent, moved as they move it.

See protocol/similar_copies.py. In the learner's thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from coordinator_free.averaging.rate_allocation import Transfer
from coordinator_free.identifiers import BlockKey, Part
from peers.lora.blocks import overwrite


class AssumedCopies:
    """One fp32 matrix [rows_g, r_g] for each (neighbour, part) that was sent. Neighbours may share one."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._at: dict[Transfer, Tensor] = {}

    def store_copy(self, peer: str, part: Part, matrix: Tensor) -> None:
        """Store the matrix that was sent to a neighbour, as it is decoded there."""
        self._at[peer, part] = matrix

    def follow(self, part: Part, peers: Iterable[str], owner: Tensor, weight: float) -> None:
        """copy <- copy + weight (owner - copy) for these neighbours."""
        copies = {key: self._at[key] for key in ((peer, part) for peer in peers) if key in self._at}
        each = {id(copy): copy for copy in copies.values()}  # neighbours that were sent it together share it
        moved = {number: copy.lerp(owner, weight) for number, copy in each.items()}
        self._at.update({key: moved[id(copy)] for key, copy in copies.items()})

    def near(self, read: Callable[[Part], Tensor | None]) -> dict[Transfer, bool]:
        """Whether each copy is within the tolerance of the own one, relative to its norm. `read`: None if the
        part is not held."""
        held = {part: read(part) for part in {part for _, part in self._at}}
        mine = {part: (own, self._tolerance * _norm(own)) for part, own in held.items() if own is not None}
        found: dict[Transfer, bool] = {}
        for (peer, part), copy in self._at.items():
            if part in mine:
                own, tolerated = mine[part]
                found[peer, part] = _norm(own - copy) <= tolerated
        return found

    def drop_block(self, block: BlockKey) -> None:
        """Delete all copies of a block. Their memory is overwritten."""
        overwrite(self._at.pop(key) for key in [key for key in self._at if key[1].block == block])

    def forget_neighbour(self, peer: str) -> None:
        """Delete the copies of a neighbour that is gone or may have restarted."""
        for key in [key for key in self._at if key[0] == peer]:
            del self._at[key]


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix))
