"""The planned bytes for the header and framing of an update suffice, with and without keys."""

from __future__ import annotations

import pytest

from transport.wire.limits import CURVE_BYTES, FRAME_BYTES, HEADER_BYTES, MAX_HASH
from transport.wire.messages import Envelope, Update, Updates
from transport.wire.packing import pack, wire_bytes

LONGEST_ID = "d" * 60


@pytest.mark.parametrize("curve", [False, True], ids=["plain", "curve"])
@pytest.mark.parametrize("size", [1, FRAME_BYTES])
def test_a_header_takes_at_most_the_planned_bytes(size: int, curve: bool) -> None:
    largest = Update(
        block=LONGEST_ID,
        block_incarnation=1 << 31,
        group="early",
        version=1 << 62,
        round=1 << 40,
        cause="correction",
        codec="int8",
        rows=1 << 31,
        rank=1 << 16,
        offset=(1 << 34) - size,
        total=1 << 34,
        xxh3=None if curve else MAX_HASH,
    )
    frames = pack(Envelope(LONGEST_ID, 1 << 31), Updates([largest]), bytes(size))
    assert wire_bytes(frames, curve) - size <= HEADER_BYTES + curve * CURVE_BYTES
