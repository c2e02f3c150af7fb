"""Signed versions: in `newest` only its owner makes a version of a block, whoever relays it (method 9).

The owner signs what it sends: the bytes, not the matrix that they are decoded to. A relay passes the bytes
and the signature on as they came, so that they can be checked at every hop. In `average` a copy is a mixture
of many hands, and there is nothing that an owner could sign.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from coordinator_free.identifiers import BlockKey, Part

DOMAIN = b"unweft block version 1"  # no other signature of a device can be taken for one of these


class SignedCopy(NamedTuple):
    """A neighbour's copy: the matrix, and what shows that the owner made it."""

    matrix: Tensor
    payload: bytes
    signature: bytes


def statement(part: Part, version: int, codec: str, payload: bytes | memoryview | bytearray) -> bytes:
    """What an owner signs of a version: whose block, which group and version, and the hash of its bytes."""
    digest = hashlib.blake2b(payload, digest_size=32).hexdigest()
    fields = (part.block.device, part.block.incarnation, part.group, version, codec, digest)
    return DOMAIN + repr(fields).encode()


class Versions:
    """The versions that this device holds of others' blocks, as they came. In the learner's thread only."""

    def __init__(self, device: str, sign: Callable[[bytes], bytes]) -> None:
        self._device, self._sign = device, sign
        self._copies: dict[Part, tuple[int, SignedCopy]] = {}

    def keep(self, part: Part, version: int, copy: SignedCopy) -> None:
        """The version of a part that is held from now on."""
        self._copies[part] = version, copy

    def drop(self, block: BlockKey) -> None:
        self._copies = {part: kept for part, kept in self._copies.items() if part.block != block}

    def relayed(self, part: Part, version: int) -> SignedCopy | None:
        """As it came from its owner; None for the own block."""
        kept = self._copies.get(part)
        return kept[1] if kept is not None and kept[0] == version else None

    def sign(self, part: Part, version: int, codec: str, payload: bytes | memoryview) -> bytes | None:
        """The own signature of an own version; None: it is another's, of which this device has no proof."""
        if part.block.device != self._device:
            return None
        return self._sign(statement(part, version, codec, payload))
