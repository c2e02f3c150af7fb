"""Seeded random streams: the same numbers on every machine, from the words that name the stream."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

Digest = Callable[[bytes], bytes]  # of a text, at most 16 bytes: the key of Philox


def sha256_128(text: bytes) -> bytes:
    """The first 16 bytes of SHA-256."""
    return hashlib.sha256(text).digest()[:16]


def blake2b_128(text: bytes) -> bytes:
    """BLAKE2b with a digest of 16 bytes."""
    return hashlib.blake2b(text, digest_size=16).digest()


def blake2b_64(text: bytes) -> bytes:
    """The first 8 bytes of `blake2b_128`."""
    return blake2b_128(text)[:8]


def generator(*words: str | int, digest: Digest = sha256_128) -> np.random.Generator:
    """A Philox generator. Its key is the digest of the words joined by "/", read as a big-endian integer.

    A stream keeps its words and its digest: other ones would change the results of earlier runs.
    """
    text = "/".join(map(str, words)).encode()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest(text), "big")))
