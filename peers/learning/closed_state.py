"""The blocks as they were when the last round was closed, while local steps of the open round move them.

Local steps that nobody has mixed are no result: a device that ends in an open round writes the state of the
last closed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.lora.blocks import BlockSet

if TYPE_CHECKING:
    from peers.storage.checkpoint import Moments


class ClosedState:
    """B of the blocks that move in the open round, by block and group, and the own block's moments.

    It is empty between the close of a round and the next local steps. A change that is no local step (a
    deletion, a refit, a received copy) is made here and in the blocks.
    """

    def __init__(self) -> None:
        self._values: dict[BlockKey, dict[str, Tensor]] = {}
        self._moments: Moments | None = None  # None: those of the optimiser

    def keep(self, blocks: BlockSet, moving: Iterable[BlockKey], moments: Moments | None) -> None:
        """A round opens. What is kept from a round that was never closed stays."""
        for key in moving:
            if key not in self._values:
                self._values[key] = {g: b.detach().clone() for g, b in blocks[key].data.items()}
        if self._moments is None and moments is not None:
            self._moments = {g: {n: m.clone() for n, m in named.items()} for g, named in moments.items()}

    def close(self) -> None:
        """The round is closed: the blocks themselves are the state."""
        self._values, self._moments = {}, None

    def set(self, key: BlockKey, group: str, values: Tensor) -> None:
        """B of a block <- values that were received."""
        if key in self._values:
            self._values[key][group].copy_(values)

    def add(self, key: BlockKey, moves: Mapping[str, Tensor]) -> None:
        """Add a move, [rows_g, r_g] by group."""
        if key in self._values:
            for group, move in moves.items():
                self._values[key][group] += move

    def carry(self, earlier: BlockKey, key: BlockKey) -> None:
        """A new block begins with the values of an earlier one."""
        if earlier in self._values:
            self._values[key] = {g: b.clone() for g, b in self._values[earlier].items()}

    def delete(self, key: BlockKey) -> None:
        """Deletion: no copy of the block stays, and its memory is overwritten."""
        for values in self._values.pop(key, {}).values():
            values.zero_()

    def forget_moments(self) -> None:
        """The own block begins anew, without moments."""
        self._moments = None

    def blocks(self, blocks: BlockSet) -> BlockSet:
        """The blocks with the values of the last closed round."""
        return blocks.replaced(self._values) if self._values else blocks

    def moments(self, present: Moments) -> Moments:
        """The own block's moments in the last closed round."""
        return present if self._moments is None else self._moments
