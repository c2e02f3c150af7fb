"""Matrices to bytes and back: fp32, fp16, bf16, int8, int4.

int8 and int4 are symmetric: value = scale * q with |q| <= 127 or 7. One scale serves a *chunk* of whole rows
with at least 128 values, because one scale per row of a rank-8 matrix would cost a quarter of it. At rank 8,
sixteen rows share 2 bytes, and int8 takes 50.8 % of fp16. Payload: the scales (bf16), then q row by row
(int4: two per byte, the first in the low half, each plus 8). Scales are bf16 because they need range, not
precision: 1e-4 / 127 of an adapter is subnormal in fp16. They are rounded up, so that no q exceeds its range.

`decode` raises WireError for a wrong length, NaN or infinity.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transport.wire.codec_names import LEVELS, Chunks, chunks, payload_bytes
from transport.wire.errors import WireError

Buffer = bytes | bytearray | memoryview
Values = NDArray[np.float32]
FP16_MAX = 65504.0
QUANTISED_MAX = 1e37  # so that 128 times any scale is finite
MAX_SCALE = np.finfo(np.float32).max / 128
_FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def peak2(matrix: Tensor) -> float:
    """Mean over chunks of the largest squared value. The errors of int8 and int4 are proportional to it.

    `matrix`: fp32 [rows, rank].
    """
    flat, shared = matrix.contiguous().flatten(), chunks(*matrix.shape)
    return float(torch.from_numpy(_largest(flat.numpy(), shared)).square().mean())


def encode(
    matrix: Tensor, codec: str, rng: np.random.Generator | None = None, *, finite: bool = True
) -> bytes:
    """Encode an fp32 [rows, rank] matrix on the CPU.

    With `finite` False, NaN and infinity are not looked for.

    fp16 saturates at +-65504. int8 and int4 round stochastically with `rng` (seeded Philox: equal seeds give
    equal bytes), so that the mean over many sends is the value; without `rng` they round to nearest. Raises
    ValueError for NaN, infinity or values beyond the codec (bf16: 3.39e38; int8, int4: 1e37), and WireError
    for an unknown codec.
    """
    return bytes(encode_view(matrix, codec, rng, finite=finite))


def encode_view(
    matrix: Tensor, codec: str, rng: np.random.Generator | None = None, *, finite: bool = True
) -> bytes | memoryview:
    """`encode` for a matrix that does not change any more: fp32 is sent from its memory, without a copy."""
    _check(matrix, finite)
    if codec in _FLOATS:
        if codec == "fp16":
            matrix = matrix.clamp(-FP16_MAX, FP16_MAX)
        if codec != "fp32":
            matrix = matrix.to(_FLOATS[codec])
        if codec == "bf16":
            if not _finite(matrix):
                raise ValueError("a value is beyond the range of bf16")
            matrix = matrix.contiguous().view(torch.uint8)  # numpy has no bf16
        return matrix.contiguous().numpy().data.cast("B")
    if codec not in LEVELS:
        raise WireError(f"unknown codec {codec!r}")
    return _quantise(matrix, codec, rng)


def encode_feedback(
    matrix: Tensor, codec: str, rng: np.random.Generator | None, error: Tensor | None
) -> tuple[bytes, Tensor]:
    """`encode` with error feedback (Seide et al., 2014): adds the error of earlier sends and returns the new
    error.

    `error`: None at first; fp32, of the shape of `matrix`. It contains information on the block: delete it
    together with the block.
    """
    wanted = matrix if error is None else matrix + error
    payload = encode(wanted, codec, rng)
    return payload, wanted - decode(bytearray(payload), codec, *wanted.shape)


def decode(
    payload: Buffer, codec: str, rows: int, rank: int, *, finite: bool = True, owned: bool = False
) -> Tensor:
    """The fp32 [rows, rank] matrix of a payload.

    `owned`: the payload is writable and belongs to the caller (as the reassembler returns it); fp32 then uses
    its memory without a copy. Otherwise the matrix has memory of its own. Raises WireError for a wrong length
    or an impossible scale and, unless `finite` is False (for trusted peers), for NaN and infinity.
    """
    if len(payload) != payload_bytes(codec, rows, rank):
        raise WireError(f"{len(payload)} bytes cannot be an {codec} matrix of {rows} x {rank}")
    if codec in LEVELS:
        return _dequantise(payload, codec, rows, rank)
    own = memoryview(payload).readonly
    source = bytearray(payload) if own else payload  # torch warns once per process about read-only memory
    own = own or owned
    matrix = torch.frombuffer(source, dtype=_FLOATS[codec]).view(rows, rank)
    if codec != "fp32" or not own:
        matrix = matrix.to(torch.float32, copy=True)
    if finite and not _finite(matrix):
        raise WireError("NaN or infinity in a matrix")
    return matrix


def _quantise(matrix: Tensor, codec: str, rng: np.random.Generator | None) -> bytes:
    """In numpy, whose calls on small arrays cost a tenth of those of torch."""
    rows, rank = matrix.shape
    shared, top = chunks(rows, rank), LEVELS[codec]
    flat: Values = matrix.contiguous().flatten().numpy()
    largest = _largest(flat, shared)
    if float(largest.max()) > QUANTISED_MAX:
        raise ValueError(f"a value is beyond the range of {codec}")
    scales = _round_up_to_bf16(largest / np.float32(top))
    steps = np.where(scales > 0, scales, np.float32(1.0))  # a chunk of zeros has scale 0
    q = flat.copy()
    for part, at in _parts(q, shared):
        part /= steps[at, None]
    if rng is None:
        np.rint(q, out=q)
    else:
        q += rng.random(q.size, dtype=np.float32)
        np.floor(q, out=q)
    np.clip(q, -top, top, out=q)  # 127 + 0.99999994 is 128 in fp32
    return (scales.view(np.uint32) >> 16).astype(np.uint16).tobytes() + _pack(q, codec)


def _dequantise(source: Buffer, codec: str, rows: int, rank: int) -> Tensor:
    shared = chunks(rows, rank)
    head = 2 * shared.scales
    high = np.frombuffer(source, np.uint16, shared.scales).astype(np.uint32)
    scales: Values = (high << 16).view(np.float32)
    if not (scales.min() >= 0 and scales.max() <= MAX_SCALE):  # so no product is infinite; NaN is neither
        raise WireError("an impossible scale in a matrix")
    if codec == "int8":
        q = np.frombuffer(source, np.int8, offset=head).astype(np.float32)
    else:
        halves = np.frombuffer(source, np.uint8, offset=head)
        q = np.stack((halves & 15, halves >> 4), 1).ravel()[: rows * rank].astype(np.float32)
        q -= 8
    for part, at in _parts(q, shared):
        part *= scales[at, None]
    return torch.from_numpy(q.reshape(rows, rank))


def _pack(q: Values, codec: str) -> bytes:
    if codec == "int8":
        return q.astype(np.int8).tobytes()
    halves = (q + 8).astype(np.uint8)
    if halves.size % 2:
        halves = np.append(halves, np.uint8(8))
    return (halves[::2] | (halves[1::2] << 4)).tobytes()


def _largest(flat: Values, shared: Chunks) -> Values:
    """The largest absolute value of each chunk."""
    return np.concatenate([np.abs(part).max(axis=1) for part, _ in _parts(flat, shared)])


def _parts(flat: Values, shared: Chunks) -> list[tuple[Values, slice]]:
    """Views of `flat` as [chunks, values] with the slice of their scales: the whole chunks, then the rest."""
    split = shared.whole * shared.size
    parts = [(flat[:split].reshape(shared.whole, shared.size), slice(0, shared.whole))]
    if shared.rest:
        parts.append((flat[split:].reshape(1, shared.rest), slice(shared.whole, shared.scales)))
    return [part for part in parts if part[0].size]


def _round_up_to_bf16(positive: Values) -> Values:
    """The smallest bf16 that is not smaller, as fp32: its lower 16 bits are 0."""
    return ((positive.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)


def _check(matrix: Tensor, finite: bool) -> None:
    if matrix.dtype != torch.float32 or matrix.dim() != 2 or not matrix.numel():
        raise ValueError("only an fp32 matrix with values can be encoded")
    if finite and not _finite(matrix):
        raise ValueError("a matrix with NaN or infinity cannot be sent")


def _finite(values: Tensor) -> bool:
    """Whether there is no NaN and no infinity.

    A finite sum proves it. A sum may overflow without one; then the extremes decide, in which NaN wins. Both
    are far faster than isfinite().all().
    """
    if math.isfinite(values.sum().item()):
        return True
    low, high = torch.aminmax(values)
    return math.isfinite(low) and math.isfinite(high)
