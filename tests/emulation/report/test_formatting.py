"""Numbers as text."""

from __future__ import annotations

import pytest

from emulation.report.formatting import megabytes, plain


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (12, "12 B"),
        (1234, "1.2 kB"),
        (12.34e6, "12.3 MB"),
        (1563e6, "1.56 GB"),
        (2e12, "2.00 TB"),
        (None, "–"),
    ],
)
def test_bytes_have_the_unit_of_their_size(count: float | None, text: str) -> None:
    assert megabytes(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (12345.6, "12,346"), (99.44, "99.4"), (0, "0")]
)
def test_numbers_have_no_exponent(value: float, text: str) -> None:
    assert plain(value) == text
