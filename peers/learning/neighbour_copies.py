"""What neighbours hold, as far as this device can tell: what an allocator measures its own copies against.

A neighbour's copy of a part is at B = 0 at first; then what it last sent or was last sent, as decoded there,
so that what a coarse codec has lost counts the next time. In the learner's thread only.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from coordinator_free.averaging.copy_distances import Distances, MatrixStatistics
from coordinator_free.identifiers import BlockKey, Part
from transport.wire.tensor_codec import peak2


class NeighbourCopies:
    """One fp32 matrix for each (neighbour, part) that was sent or heard."""

    def __init__(self) -> None:
        self._theirs: dict[str, dict[Part, Tensor]] = {}

    def note(self, peer: str, part: Part, matrix: Tensor) -> None:
        """What was just sent to a neighbour, or came from it: as decoded, [rows_g, r_g]."""
        self._theirs.setdefault(peer, {})[part] = matrix

    def drop(self, block: BlockKey) -> None:
        """Deletion: nothing of the block stays."""
        for theirs in self._theirs.values():
            for part in [part for part in theirs if part.block == block]:
                del theirs[part]

    def forget(self, peer: str) -> None:
        """A neighbour that is gone, or may have started again."""
        self._theirs.pop(peer, None)

    def distances(self, mine: Mapping[Part, Tensor]) -> Distances:
        """`mine`: own copies, fp32 [rows_g, r_g] on the CPU."""
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
