"""Cheap bulk data: packed once for all fragments, not copied, and freed memory kept."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transport.links.malloc import keep_freed_memory
from transport.wire.codec_names import CODECS
from transport.wire.errors import WireError
from transport.wire.fragments import Reassembler, split
from transport.wire.limits import MAX_PAYLOAD
from transport.wire.messages import Envelope, Update, Updates
from transport.wire.packing import pack, pack_fragments, unpack
from transport.wire.tensor_codec import decode, encode, encode_view

ENVELOPE = Envelope("d1", 2, 7, 8, 9)


def update(total: int, **fields: object) -> Update:
    header = Update("d5", 0, "early", 12, 3, "train", "fp16", 3000, 8, 0, total, 12345678)
    return dataclasses.replace(header, **fields)  # type: ignore[arg-type]


@given(
    st.binary(min_size=1, max_size=70_000), st.integers(1, 70_000), st.none() | st.integers(0, (1 << 64) - 1)
)
def test_fragments_are_packed_as_if_packed_one_by_one(payload, part_bytes, xxh3) -> None:
    header = update(len(payload), xxh3=xxh3)
    part_bytes = max(part_bytes, len(payload) // 200)
    each = [
        pack(ENVELOPE, Updates([dataclasses.replace(header, offset=at * part_bytes)]), part)
        for at, part in enumerate(split(payload, part_bytes))
    ]
    assert [list(frames) for frames in pack_fragments(ENVELOPE, header, payload, part_bytes)] == each


def test_fragments_that_unpack_would_refuse_are_refused() -> None:
    with pytest.raises(ValueError, match="9 bytes of payload"):
        pack_fragments(ENVELOPE, update(10), bytes(9), 5)
    with pytest.raises(ValueError, match="at offset 3"):
        pack_fragments(ENVELOPE, update(10, offset=3), bytes(10), 5)
    with pytest.raises(ValueError, match="cause is out of range"):
        pack_fragments(ENVELOPE, update(10, cause="gossip"), bytes(10), 5)
    with pytest.raises(ValueError, match="wrong payload"):
        pack_fragments(ENVELOPE, update(MAX_PAYLOAD + 1), bytes(MAX_PAYLOAD + 1), MAX_PAYLOAD + 1)


@pytest.mark.parametrize("codec", CODECS)
def test_a_view_holds_what_encoding_gives(codec: str) -> None:
    matrix = torch.randn(33, 8)
    assert bytes(encode_view(matrix, codec)) == encode(matrix, codec)
    assert bytes(encode_view(matrix.T, codec)) == encode(matrix.T.contiguous(), codec)


def test_fp32_is_sent_and_decoded_without_a_copy() -> None:
    matrix = torch.ones(4, 2)
    sent = encode_view(matrix, "fp32")
    matrix[3, 1] = 2
    came = bytearray(sent)
    taken = decode(came, "fp32", 4, 2, owned=True)
    assert taken[3, 1] == 2
    came[:4] = bytes(4)
    assert taken[0, 0] == 0


def test_trusted_matrices_are_not_scanned() -> None:
    matrix = torch.tensor([[float("nan")]])
    with pytest.raises(ValueError, match="NaN"):
        encode(matrix, "fp32")
    payload = encode(matrix, "fp32", finite=False)
    with pytest.raises(WireError, match="NaN"):
        decode(payload, "fp32", 1, 1)
    assert decode(payload, "fp32", 1, 1, finite=False).isnan().all()


def test_an_update_of_one_fragment_is_returned_without_a_copy_and_checked() -> None:
    box, part = Reassembler(1), bytearray(b"12345678")
    _, message = unpack(pack(ENVELOPE, Updates([update(8, xxh3=None)]), memoryview(part)))
    assert isinstance(message, Updates)
    (header,) = message.headers
    view = memoryview(part)
    assert box.add_fragment("d1", header, view) is view
    assert (box.bytes_in_flight, box.abandoned) == (0, 0)
    with pytest.raises(WireError, match="checksum"):
        box.add_fragment("d1", dataclasses.replace(header, xxh3=1), view)


def test_an_update_of_one_part_replaces_an_unfinished_one_but_no_newer_one() -> None:
    box = Reassembler(100)
    unfinished = update(8, xxh3=None)
    assert box.add_fragment("d1", unfinished, b"1234") is None
    with pytest.raises(WireError, match="newer version has replaced"):
        box.add_fragment("d1", dataclasses.replace(unfinished, version=11), b"12345678")
    assert box.add_fragment("d1", dataclasses.replace(unfinished, version=13), b"12345678") == b"12345678"
    assert (box.bytes_in_flight, box.abandoned, box.abandoned_bytes) == (0, 1, 4)


def test_freed_memory_can_be_kept_where_there_is_glibc() -> None:
    assert keep_freed_memory() or sys.platform != "linux"
