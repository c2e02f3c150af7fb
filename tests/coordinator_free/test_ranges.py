"""Names and ranges: one rule wherever a value enters, and nothing unsafe becomes a part of a path."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator_free import ranges
from coordinator_free.ranges import path_component, valid_device_id

BAD_IDS = [
    "",
    "?x",
    "a\n",
    "d0\n",
    "/../../x",
    "..",
    "d 1",
    "ü",
    "0d",
    "d" * 61,
    "x" * 200,
    "d0@0",
    "*",
    7,
    None,
]


@pytest.mark.parametrize("name", BAD_IDS)
def test_a_bad_device_id_is_refused(name: object) -> None:
    assert not valid_device_id(name)


def test_good_device_ids_are_accepted() -> None:
    assert all(map(valid_device_id, ["d0", "D-1_x", "a" * 60]))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/x", "a\\b", "a\nb", "a\0b", ".hidden", "x" * 201, "ü"]
)
def test_an_unsafe_path_component_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a file name"):
        path_component(name)


@given(st.text(max_size=300))
def test_a_path_component_stays_in_its_folder(name: str) -> None:
    try:
        safe = path_component(name)
    except ValueError:
        return
    assert (
        safe == name
        and Path("/run") / safe == Path("/run", name)
        and (Path("/run") / safe).parent == Path("/run")
    )


def test_addresses_are_printable_and_short() -> None:
    assert ranges.address("tcp://10.0.0.1:7000")
    assert not any(map(ranges.address, ["", "tcp://a\nb:1", "t" * 257, "tcp://a b:1", "tcp://ü:1", 3]))
