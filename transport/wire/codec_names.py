"""The codecs of a matrix and the exact sizes of their payloads; without torch (coding: tensor_codec.py)."""

from __future__ import annotations

from typing import NamedTuple

from transport.wire.errors import WireError

CHUNK_VALUES = 128  # values that share a scale, at least (the last chunk: what is left)
FLOAT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}  # of one value
LEVELS = {"int8": 127, "int4": 7}  # the largest |q|
CODECS = (*FLOAT_BYTES, *LEVELS)
FEEDBACK = tuple(LEVELS)  # these lose so much that a sender should use error feedback


class Chunks(NamedTuple):
    """How n values share scales: `whole` chunks of `size` values, then one of `rest` if that is not 0."""

    size: int
    whole: int
    rest: int

    @property
    def scales(self) -> int:
        return self.whole + bool(self.rest)


def chunks(rows: int, rank: int) -> Chunks:
    """The chunks of a rows x rank matrix. A chunk holds whole rows and at least CHUNK_VALUES values."""
    size = rank * -(-CHUNK_VALUES // rank)
    return Chunks(size, *divmod(rows * rank, size))


def payload_bytes(codec: str, rows: int, rank: int) -> int:
    """Exact size of an encoded rows x rank matrix. Raises WireError for an unknown codec."""
    values = rows * rank
    if codec in FLOAT_BYTES:
        return FLOAT_BYTES[codec] * values
    if codec not in LEVELS:
        raise WireError(f"unknown codec {codec!r}")
    return 2 * chunks(rows, rank).scales + (values if codec == "int8" else -(-values // 2))
