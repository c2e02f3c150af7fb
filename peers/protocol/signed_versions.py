"""Signed versions: in mode `newest` only the owner of a block makes its versions (method 9).

The owner signs the encoded bytes, not the decoded matrix. A relay forwards the bytes and the signature
unchanged, so that every receiver can check them. In mode `average` a copy is a mixture of many devices'
copies, and nobody could sign it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

from coordinator_free.identifiers import BlockKey, Part

DOMAIN = b"unweft block version 1"  # separates these signatures from all other signatures of a device


class SignedCopy(NamedTuple):
    """A neighbour's copy with the proof that the owner made it."""

    matrix: Any  # the decoded tensor; the protocol never looks into it
    payload: bytes
    signature: bytes


def statement(part: Part, version: int, codec: str, payload: bytes | memoryview | bytearray) -> bytes:
    """The bytes that an owner signs: block, group, version, codec and the hash of the payload."""
    digest = hashlib.blake2b(payload, digest_size=32).hexdigest()
    fields = (part.block.device, part.block.incarnation, part.group, version, codec, digest)
    return DOMAIN + repr(fields).encode()


class Versions:
    """The signed versions of foreign blocks, as they arrived. Only the learner's thread uses it."""

    def __init__(self, device: str, sign: Callable[[bytes], bytes]) -> None:
        self._device, self._sign = device, sign
        self._copies: dict[Part, tuple[int, SignedCopy]] = {}

    def keep(self, part: Part, version: int, copy: SignedCopy) -> None:
        """Replace the version of a part that is held."""
        self._copies[part] = version, copy

    def drop_block(self, block: BlockKey) -> list[SignedCopy]:
        """Forget all versions of a deleted block. Returns them, so that they can be overwritten."""
        parts = [part for part in self._copies if part.block == block]
        return [self._copies.pop(part)[1] for part in parts]

    def relayed(self, part: Part, version: int) -> SignedCopy | None:
        """The version as its owner sent it. None: it is not held, or the block is the own one."""
        kept = self._copies.get(part)
        return kept[1] if kept is not None and kept[0] == version else None

    def sign(self, part: Part, version: int, codec: str, payload: bytes | memoryview) -> bytes | None:
        """Sign a version of the own block. None: the block is foreign, so this device cannot sign it."""
        if part.block.device != self._device:
            return None
        return self._sign(statement(part, version, codec, payload))
