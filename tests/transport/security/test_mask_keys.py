"""Mask keys: both devices of a pair have the same stream, and no point of low order gets in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator_free.ranges import LOW_ORDER, mask_key
from transport.security.mask_keys import MaskKey

OWN, OTHER = MaskKey(), MaskKey()


def test_both_devices_of_a_pair_have_the_same_stream() -> None:
    assert OWN.stream(OTHER.public, b"c", 1000) == OTHER.stream(OWN.public, b"c", 1000)
    assert OWN.stream(OTHER.public, b"c", 1000)[:10] == OWN.stream(OTHER.public, b"c", 10)


def test_streams_differ_by_key_and_context() -> None:
    third = MaskKey()
    streams = [OWN.stream(OTHER.public, b"c", 32), OWN.stream(OTHER.public, b"d", 32)]
    streams += [OWN.stream(third.public, b"c", 32), third.stream(OTHER.public, b"c", 32)]
    assert len(set(streams)) == 4
    assert OWN.public != OTHER.public and len(OWN.public) == 32


@pytest.mark.parametrize("high_bit", [0, 1 << 255])
def test_points_of_low_order_are_refused_because_their_secret_is_known(high_bit: int) -> None:
    for number in LOW_ORDER:
        public = (number | high_bit).to_bytes(32, "little")
        assert not mask_key(public)
        with pytest.raises(ValueError, match="shared key"):
            OWN.stream(public, b"c", 8)


@settings(max_examples=50)
@given(st.binary(min_size=32, max_size=32))
def test_every_key_that_is_let_in_gives_a_stream(public: bytes) -> None:
    if mask_key(public):
        assert len(OWN.stream(public, b"c", 8)) == 8


@pytest.mark.parametrize("value", [None, "x" * 32, b"", bytes(31), b"\x05" * 33, 5, bytearray(OWN.public)])
def test_anything_else_is_no_key(value: object) -> None:
    assert not mask_key(value)
    assert mask_key(OWN.public)
