"""Matrices to bytes and back: fp32, fp16, bf16, int8, int4.

int8 and int4 are symmetric: value = scale * q with |q| <= 127 or 7. A scale belongs to a *chunk* of whole
rows with at least 128 values, because a scale for each row of a rank-8 matrix would cost a quarter of it:
at rank 8, sixteen rows share 2 bytes and int8 is 50.8 % of fp16. Payload: the scales (bf16), then q row by
row (int4: two a byte, the first in the low half, each plus 8). Scales are bf16 because they need range, not
digits: an adapter's 1e-4 / 127 is subnormal in fp16. They are rounded up, so that no q leaves its range.

`decode` trusts nothing: a wrong length, NaN or infinity is a WireError.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from transport.wire.codec_names import LEVELS, Chunks, chunks, payload_bytes
from transport.wire.errors import WireError

Buffer = bytes | bytearray | memoryview
FP16_MAX = 65504.0
QUANTISED_MAX = 1e37  # so that 128 times any scale is finite
_FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def peak2(matrix: Tensor) -> float:
    """Mean over chunks of the largest squared value. The errors of int8 and int4 are proportional to it.

    `matrix`: fp32 [rows, rank].
    """
    flat, shared = matrix.contiguous().flatten(), chunks(*matrix.shape)
    return float(torch.cat([part.abs().amax(1) for part, _ in _parts(flat, shared)]).square().mean())


def encode(
    matrix: Tensor, codec: str, rng: np.random.Generator | None = None, *, finite: bool = True
) -> bytes:
    """`matrix`: fp32 [rows, rank] on the CPU. `finite` False: not looked through for NaN and infinity.

    fp16 saturates at +-65504. int8 and int4 round stochastically with `rng` (seeded Philox: the same seed,
    the same bytes), so that the mean over many sends is the value; without, to the nearest. Raises ValueError
    on NaN, infinity or values beyond the codec (bf16: 3.39e38; int8, int4: 1e37) and WireError for an unknown
    codec.
    """
    return bytes(encode_view(matrix, codec, rng, finite=finite))


def encode_view(
    matrix: Tensor, codec: str, rng: np.random.Generator | None = None, *, finite: bool = True
) -> bytes | memoryview:
    """`encode` for a matrix that nobody changes any more: fp32 is sent from where it is, without a copy."""
    _check(matrix, finite)
    if codec in _FLOATS:
        if codec == "fp16":
            matrix = matrix.clamp(-FP16_MAX, FP16_MAX)
        if codec != "fp32":
            matrix = matrix.to(_FLOATS[codec])
        if codec == "bf16":
            if not _finite(matrix):
                raise ValueError("a value beyond bf16")
            matrix = matrix.contiguous().view(torch.uint8)  # numpy has no bf16
        return matrix.contiguous().numpy().data.cast("B")
    if codec not in LEVELS:
        raise WireError(f"unknown codec {codec!r}")
    return _quantise(matrix, codec, rng)


def encode_feedback(
    matrix: Tensor, codec: str, rng: np.random.Generator | None, error: Tensor | None
) -> tuple[bytes, Tensor]:
    """`encode` with error feedback: what earlier sends lost is added, what this one loses is returned.

    `error`: None at first; fp32, the shape of `matrix`. Purge it when the block is deleted: it tells of it.
    """
    wanted = matrix if error is None else matrix + error
    payload = encode(wanted, codec, rng)
    return payload, wanted - decode(bytearray(payload), codec, *wanted.shape)


def decode(
    payload: Buffer, codec: str, rows: int, rank: int, *, finite: bool = True, owned: bool = False
) -> Tensor:
    """The fp32 [rows, rank] matrix.

    `owned`: a writable payload that nobody else will change (what a reassembler returns); fp32 then stays
    where it is, without a copy. Otherwise the matrix has memory of its own. Raises WireError on a wrong
    length, an impossible scale and, unless `finite` is False (for those who trust their peers), on NaN and
    infinity.
    """
    if len(payload) != payload_bytes(codec, rows, rank):
        raise WireError(f"{len(payload)} bytes are no {codec} matrix of {rows} x {rank}")
    own = memoryview(payload).readonly
    source = bytearray(payload) if own else payload  # torch warns, once a process, about read-only memory
    own = own or owned
    if codec in LEVELS:
        return _dequantise(source, codec, rows, rank)
    matrix = torch.frombuffer(source, dtype=_FLOATS[codec]).view(rows, rank)
    if codec != "fp32" or not own:
        matrix = matrix.to(torch.float32, copy=True)
    if finite and not _finite(matrix):
        raise WireError("NaN or infinity in a matrix")
    return matrix


def _quantise(matrix: Tensor, codec: str, rng: np.random.Generator | None) -> bytes:
    rows, rank = matrix.shape
    shared, top = chunks(rows, rank), LEVELS[codec]
    flat = matrix.contiguous().flatten()
    largest = torch.cat([part.abs().amax(1) for part, _ in _parts(flat, shared)])
    if float(largest.max()) > QUANTISED_MAX:
        raise ValueError(f"a value beyond {codec}")
    scales = _round_up_to_bf16(largest / top)
    steps = torch.where(scales > 0, scales, 1.0)  # a chunk of zeros
    q = torch.cat([(part / steps[at, None]).flatten() for part, at in _parts(flat, shared)])
    if rng is None:
        q.round_()
    else:
        q.add_(torch.from_numpy(rng.random(q.numel(), dtype=np.float32))).floor_()
    q.clamp_(-top, top)  # 127 + 0.99999994 is 128 in fp32
    head = (scales.view(torch.int32) >> 16).to(torch.int16)
    return head.numpy().tobytes() + _pack(q, codec)


def _dequantise(source: Buffer, codec: str, rows: int, rank: int) -> Tensor:
    shared = chunks(rows, rank)
    head = 2 * shared.scales
    scales = torch.frombuffer(source, dtype=torch.bfloat16, count=shared.scales).float()
    if not _finite(scales * 128) or bool((scales < 0).any()):  # then no product is infinite either
        raise WireError("an impossible scale in a matrix")
    if codec == "int8":
        q = torch.frombuffer(source, dtype=torch.int8, offset=head).float()
    else:
        halves = torch.frombuffer(source, dtype=torch.uint8, offset=head)
        q = torch.stack((halves & 15, halves >> 4), 1).flatten()[: rows * rank].float().sub_(8)
    for part, at in _parts(q, shared):
        part.mul_(scales[at, None])
    return q.reshape(rows, rank)


def _pack(q: Tensor, codec: str) -> bytes:
    if codec == "int8":
        return q.to(torch.int8).numpy().tobytes()
    halves = (q + 8).to(torch.uint8)
    if halves.numel() % 2:
        halves = torch.cat((halves, halves.new_full((1,), 8)))
    pairs = halves.view(-1, 2)
    return (pairs[:, 0] | (pairs[:, 1] << 4)).numpy().tobytes()


def _parts(flat: Tensor, shared: Chunks) -> list[tuple[Tensor, slice]]:
    """Views of `flat` as [chunks, values]: whole ones, then the rest; with each, its slice of the scales."""
    split = shared.whole * shared.size
    parts = [(flat[:split].view(shared.whole, shared.size), slice(0, shared.whole))]
    if shared.rest:
        parts.append((flat[split:].view(1, shared.rest), slice(shared.whole, shared.scales)))
    return [part for part in parts if part[0].numel()]


def _round_up_to_bf16(positive: Tensor) -> Tensor:
    """The next bf16 that is not smaller, as fp32: its lower 16 bits are 0."""
    return ((positive.view(torch.int32) + 0xFFFF) & -0x10000).view(torch.float32)


def _check(matrix: Tensor, finite: bool) -> None:
    if matrix.dtype != torch.float32 or matrix.dim() != 2 or not matrix.numel():
        raise ValueError("only a matrix of fp32 values is encoded")
    if finite and not _finite(matrix):
        raise ValueError("a matrix with NaN or infinity is not sent")


def _finite(values: Tensor) -> bool:
    """Without NaN and infinity. Any of them is one in the sum too; so may a sum be that is only too large,
    and then the extremes are asked, in which NaN wins. Both are far faster than isfinite().all()."""
    if math.isfinite(values.sum().item()):
        return True
    low, high = torch.aminmax(values)
    return math.isfinite(low) and math.isfinite(high)
