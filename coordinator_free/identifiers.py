"""The identities that every package uses: a block, and a part of a block (docs/glossary.md)."""

from __future__ import annotations

from typing import NamedTuple


class BlockKey(NamedTuple):
    """The identity of a block: its owner and the owner's incarnation. Printed `d5@0`."""

    device: str
    incarnation: int

    def __str__(self) -> str:
        return f"{self.device}@{self.incarnation}"

    @classmethod
    def parse(cls, text: str) -> BlockKey:
        """Read "d5@0". Raises ValueError."""
        device, at, incarnation = text.rpartition("@")
        if not device or not at or not incarnation.isdecimal():
            raise ValueError(f"{text!r} is no block; expected <device>@<incarnation>")
        return cls(device, int(incarnation))


class Part(NamedTuple):
    """One group of one block: the unit that is mixed, sent and versioned."""

    block: BlockKey
    group: str
