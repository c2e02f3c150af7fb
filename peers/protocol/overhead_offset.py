"""Offset the bytes of measurements: some matrices go out in a coarser codec.

So a policy that measures sends no more bytes than one that does not, and the two can be compared. The groups
of lowest priority take the coarser codec first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from coordinator_free.identifiers import Part

COARSER = {"fp32": "int8", "bf16": "int8", "fp16": "int8", "int8": "int4"}


class PartBytes(Protocol):
    """The largest wire size in bytes of a part of a group. `codec` None: the codec of the scenario."""

    def __call__(self, group: str, codec: str | None = None) -> int: ...


class OverheadOffset:
    """The debt of one device in bytes. `codec`: of its data; int4 has no coarser codec, so it has no debt."""

    def __init__(self, codec: str, part_bytes: PartBytes) -> None:
        self._coarser, self._part_bytes = COARSER.get(codec), part_bytes
        self._owed = self._turn = 0

    def add_overhead(self, size: int) -> None:
        """`size` bytes were sent for a measurement."""
        if self._coarser is not None:
            self._owed += size

    @property
    def owes(self) -> bool:
        return self._owed > 0

    def codecs(self, copies: Mapping[Part, int], priority: Mapping[str, float]) -> dict[Part, str]:
        """Choose parts for the coarser codec until the bytes saved cover the debt.

        `copies`: the number of neighbours to which each part goes. `priority`: by group.
        """
        coarser: dict[Part, str] = {}
        for part in self._in_turn(copies, priority):
            if self._coarser is None or not self.owes:
                break
            saved = self._part_bytes(part.group) - self._part_bytes(part.group, self._coarser)
            if saved > 0:
                coarser[part] = self._coarser
                self._owed -= copies[part] * saved
        self._turn += len(coarser)
        return coarser

    def _in_turn(self, parts: Collection[Part], priority: Mapping[str, float]) -> list[Part]:
        """Groups of lowest priority first; inside a group, the blocks take turns."""
        turn = self._turn % max(1, len(parts))
        ordered = sorted(parts)
        return sorted([*ordered[turn:], *ordered[:turn]], key=lambda part: priority[part.group])
