"""Round trips within each codec's error, unbiased rounding, exact sizes, and no harmful values decoded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.wire.codec_names import CHUNK_VALUES, CODECS, payload_bytes
from transport.wire.errors import WireError
from transport.wire.tensor_codec import FP16_MAX, decode, encode, encode_feedback

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 40))
TOPS = {"int8": 127, "int4": 7}


def philox(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def matrix(shape: tuple[int, int], seed: int, scale: float = 1.0) -> torch.Tensor:
    values = philox(seed).standard_normal(shape) * scale
    return torch.from_numpy(values.astype(np.float32))


def chunk_largest(values: torch.Tensor) -> torch.Tensor:
    """max |x| of the chunk that each value is in, computed the slow way."""
    rows, rank = values.shape
    step = math.ceil(CHUNK_VALUES / rank)
    parts = [
        values[at : at + step].abs().amax().expand(min(step, rows - at), rank) for at in range(0, rows, step)
    ]
    return torch.cat(parts)


@settings(max_examples=150)
@given(
    SHAPES,
    st.sampled_from(CODECS),
    st.integers(0, 999),
    st.sampled_from([1e-30, 1e-6, 1.0, 1e4]),
    st.booleans(),
)
def test_a_round_trip_stays_within_the_codecs_error_and_its_exact_size(
    shape, codec, seed, scale, stochastic
) -> None:
    values = matrix(shape, seed, scale)
    payload = encode(values, codec, philox(seed) if stochastic else None)
    assert len(payload) == payload_bytes(codec, *shape)
    error = (decode(payload, codec, *shape) - values).abs()
    if codec == "fp32":
        bound = torch.zeros(shape)
    elif codec == "fp16":
        bound = values.abs() * 2**-11 + 2**-25
    elif codec == "bf16":
        bound = values.abs() * 2**-8
    else:  # one step, half of it to the nearest; the scale is rounded up by at most 2^-7
        bound = chunk_largest(values) / TOPS[codec] * (1 + 2**-7) * (1.0001 if stochastic else 0.5001)
    assert bool((error <= bound).all())


@pytest.mark.parametrize("codec", TOPS)
def test_stochastic_rounding_has_no_bias(codec: str) -> None:
    values, rng, sends = matrix((20, 8), 1), philox(2), 4000
    mean = sum(decode(encode(values, codec, rng), codec, 20, 8) for _ in range(sends)) / sends
    step = chunk_largest(values) / TOPS[codec] * (1 + 2**-7)
    assert bool(((mean - values).abs() <= 5 * 0.5 * step / math.sqrt(sends)).all())
    assert abs(float(((mean - values) / step).mean())) < 4 * 0.5 / math.sqrt(sends * values.numel())


@pytest.mark.parametrize("codec", TOPS)
def test_the_same_seed_gives_the_same_bytes(codec: str) -> None:
    values = matrix((20, 8), 1)
    assert (
        encode(values, codec, philox(3))
        == encode(values, codec, philox(3))
        != encode(values, codec, philox(4))
    )


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4"])
def test_with_error_feedback_the_sum_of_sends_follows_the_sum_of_values(codec: str) -> None:
    values, error, received = matrix((33, 8), 5), None, torch.zeros(33, 8)
    for _ in range(50):
        payload, error = encode_feedback(values, codec, None, error)
        received += decode(payload, codec, 33, 8)
    assert error is not None
    torch.testing.assert_close(received + error, 50 * values, rtol=1e-4, atol=1e-4)
    assert float(error.abs().max()) <= float(values.abs().max()) / 3


@pytest.mark.parametrize("rank", [1, 4, 8, 16, 64])
def test_int8_halves_fp16_within_3_percent(rank: int) -> None:
    assert payload_bytes("int8", 4096, rank) / payload_bytes("fp16", 4096, rank) < 0.5 * 1.03
    assert payload_bytes("int4", 4096, rank) / payload_bytes("fp16", 4096, rank) < 0.25 * 1.04


def test_sizes_are_what_is_documented() -> None:
    assert payload_bytes("fp32", 17, 8) == 544
    assert payload_bytes("int8", 17, 8) == 2 * 2 + 136
    assert payload_bytes("int4", 3, 3) == 2 + 5


def test_fp16_saturates() -> None:
    values = torch.tensor([[1e6, -1e30]])
    assert decode(encode(values, "fp16"), "fp16", 1, 2).tolist() == [[FP16_MAX, -FP16_MAX]]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 1e36])
def test_zero_tiny_and_huge_values_stay_finite(codec: str, value: float) -> None:
    back = decode(encode(torch.full((20, 8), value), codec, philox(0)), codec, 20, 8)
    assert bool(torch.isfinite(back).all())
    assert value or not back.any()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_not_encoded(codec: str, bad: float) -> None:
    values = torch.ones(20, 8)
    values[13, 5] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode(values, codec)


def test_values_beyond_every_scale_are_not_encoded() -> None:
    for codec in ("bf16", "int8", "int4"):
        with pytest.raises(ValueError, match="beyond"):
            encode(torch.full((2, 2), 3.4028e38), codec)


def test_only_fp32_matrices_are_encoded() -> None:
    for wrong in (torch.ones(2, 2, dtype=torch.float64), torch.ones(4), torch.ones(0, 2)):
        with pytest.raises(ValueError, match="fp32"):
            encode(wrong, "fp16")


@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_not_decoded(codec: str, bad: float) -> None:
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[codec]
    values = torch.ones(20, 8, dtype=dtype)
    values[19, 7] = bad
    with pytest.raises(WireError, match="NaN or infinity"):
        decode(values.view(torch.uint8).numpy().tobytes(), codec, 20, 8)


def test_values_whose_sum_is_too_large_are_finite_all_the_same() -> None:
    large = torch.full((64, 8), 3e38)
    assert torch.equal(decode(encode(large, "fp32"), "fp32", 64, 8), large)


def test_infinities_that_cancel_are_found() -> None:
    matrix = torch.zeros(64, 8)
    matrix[0, 0], matrix[1, 1] = math.inf, -math.inf
    with pytest.raises(WireError, match="NaN or infinity"):
        decode(matrix.numpy().tobytes(), "fp32", 64, 8)


@pytest.mark.parametrize("codec", TOPS)
@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -1.0, 3e38])
def test_impossible_scales_are_not_decoded(codec: str, scale: float) -> None:
    payload = bytearray(encode(torch.ones(20, 8), codec))
    payload[2:4] = torch.tensor([scale], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    with pytest.raises(WireError, match="scale"):
        decode(payload, codec, 20, 8)


@settings(max_examples=200)
@given(st.binary(max_size=80), st.sampled_from(CODECS), st.integers(1, 5), st.integers(1, 5))
def test_any_bytes_decode_to_finite_values_or_a_wire_error(payload, codec, rows, rank) -> None:
    size = payload_bytes(codec, rows, rank)
    for candidate in (payload, payload[:size].ljust(size, b"\xff")):
        try:
            values = decode(candidate, codec, rows, rank)
        except WireError:
            continue
        assert values.shape == (rows, rank)
        assert bool(torch.isfinite(values).all())


def test_a_wrong_length_and_an_unknown_codec_are_refused() -> None:
    payload = encode(torch.ones(4, 4), "fp16")
    for wrong in (payload[:-1], payload + b"\0", b""):
        with pytest.raises(WireError, match="bytes cannot be an fp16"):
            decode(wrong, "fp16", 4, 4)
    for call in (lambda: decode(payload, "zip", 4, 4), lambda: encode(torch.ones(4, 4), "zip")):
        with pytest.raises(WireError, match="unknown codec"):
            call()


@pytest.mark.parametrize("codec", CODECS)
def test_a_decoded_matrix_owns_its_memory(codec: str) -> None:
    values = matrix((20, 8), 1)
    payload = bytearray(encode(values, codec))
    shifted = memoryview(b"x" + payload)[1:]  # read-only and unaligned
    decoded = decode(payload, codec, 20, 8)
    assert torch.equal(decode(shifted, codec, 20, 8), decoded)
    before = decoded.clone()
    payload[:] = bytes(len(payload))
    assert torch.equal(decoded, before)


def test_a_transposed_matrix_is_encoded_row_by_row() -> None:
    values = matrix((8, 20), 1).T
    for codec in CODECS:
        assert encode(values, codec) == encode(values.contiguous(), codec)
