"""What measuring sends beside data is made up for: some matrices go out in a coarser codec.

So a policy that measures is compared to one that does not at no more bytes. Groups of least priority pay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from coordinator_free.identifiers import Part

COARSER = {"fp32": "int8", "bf16": "int8", "fp16": "int8", "int8": "int4"}


class PartBytes(Protocol):
    """What a (block, group) costs on the wire, at most. `codec` None: the scenario's."""

    def __call__(self, group: str, codec: str | None = None) -> int: ...


class OverheadOffset:
    """Of one device. `codec`: of its data; with int4 nothing can be made up for."""

    def __init__(self, codec: str, part_bytes: PartBytes) -> None:
        self._coarser, self._part_bytes = COARSER.get(codec), part_bytes
        self._owed = self._turn = 0

    def spent(self, size: int) -> None:
        """So many bytes went out beside data."""
        if self._coarser is not None:
            self._owed += size

    @property
    def owes(self) -> bool:
        return self._owed > 0

    def codecs(self, copies: Mapping[Part, int], priority: Mapping[str, float]) -> dict[Part, str]:
        """The coarser codec for as many of the parts that go out, so often each, as save what is owed."""
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
        """Groups of least priority first; within one, each block in its turn."""
        turn = self._turn % max(1, len(parts))
        ordered = sorted(parts)
        return sorted([*ordered[turn:], *ordered[:turn]], key=lambda part: priority[part.group])
