"""The learner's part of `mixing.tolerance` on small arrays: what neighbours assume of the own copies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from coordinator_free.averaging.mixing import Follow
from coordinator_free.averaging.rate_allocation import Transfer
from coordinator_free.identifiers import BlockKey, Part

Values = NDArray[np.float64]


class Assumptions:
    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self.at: dict[Transfer, Values] = {}

    def note(self, peer: str, part: Part, values: Values) -> None:
        self.at[peer, part] = values.copy()

    def follow(self, part: Part, follow: Follow | None, own: Values) -> None:
        if follow is None:
            return
        owner = own if follow.owner is None else follow.owner
        for share, kept in follow.kept:
            kept += share * (owner - kept)
        for key in ((peer, part) for peer in follow.peers):
            if key in self.at:
                self.at[key] = self.at[key] + follow.share * (owner - self.at[key])

    def near(self, mine: Mapping[Part, Values]) -> dict[Transfer, bool]:
        if not self._tolerance:
            return {}
        return {
            (peer, part): bool(
                np.linalg.norm(mine[part] - copy) <= self._tolerance * np.linalg.norm(mine[part])
            )
            for (peer, part), copy in self.at.items()
            if part in mine
        }

    def drop(self, key: BlockKey) -> None:
        self.at = {want: copy for want, copy in self.at.items() if want[1].block != key}
