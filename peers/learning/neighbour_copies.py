"""The neighbours' copies, as far as this device knows them. An allocator compares its own copies with them.

The copy of a part starts at B = 0. Then it is the matrix that the neighbour last sent or was last sent, as
decoded there. The error of a coarse codec therefore counts the next time. In the learner's thread only.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from coordinator_free.averaging.copy_distances import Distances, MatrixStatistics
from coordinator_free.identifiers import BlockKey, Part
from peers.lora.blocks import overwrite
from transport.wire.tensor_codec import peak2


class NeighbourCopies:
    """One fp32 matrix for each (neighbour, part) that was sent or received."""

    def __init__(self) -> None:
        self._theirs: dict[str, dict[Part, Tensor]] = {}

    def store_copy(self, peer: str, part: Part, matrix: Tensor) -> None:
        """Store the decoded matrix, [rows_g, r_g], that was sent to a neighbour or received from it."""
        self._theirs.setdefault(peer, {})[part] = matrix

    def drop_block(self, block: BlockKey) -> None:
        """Delete all copies of a block. Their memory is overwritten."""
        for theirs in self._theirs.values():
            parts = [part for part in theirs if part.block == block]
            overwrite(theirs.pop(part) for part in parts)

    def forget_neighbour(self, peer: str) -> None:
        """Delete the copies of a neighbour that is gone or may have restarted."""
        self._theirs.pop(peer, None)

    def distances(self, mine: Mapping[Part, Tensor]) -> Distances:
        """Compare with the own copies `mine`, fp32 [rows_g, r_g] on the CPU."""
        matrices = {p: MatrixStatistics(_norm2(b), peak2(b), b.numel()) for p, b in mine.items()}
        apart2 = {
            (peer, part): _norm2(mine[part] - matrix)
            for peer, theirs in self._theirs.items()
            for part, matrix in theirs.items()
            if part in mine
        }
        return Distances(matrices, apart2)


def _norm2(matrix: Tensor) -> float:
    return float(matrix.square().sum())
