"""Seeded random streams are functions of their words, and their numbers never change."""

from __future__ import annotations

import pytest

from coordinator_free.seeded_random import Digest, blake2b_64, blake2b_128, generator, sha256_128


@pytest.mark.parametrize(
    ("words", "digest", "numbers"),
    [
        ((3, "d0", 7, 1), sha256_128, [3424727339, 1046496140, 1558939349]),
        ((3, "d0"), blake2b_128, [3737354395, 749424596, 578207706]),
        ((3, "d0"), blake2b_64, [2235318417, 4247463645, 2004500678]),
        ((repr((3, "d0", True)),), blake2b_128, [349954891, 3559608080, 2548835345]),
    ],
)
def test_a_stream_has_the_numbers_of_earlier_releases(
    words: tuple[str | int, ...], digest: Digest, numbers: list[int]
) -> None:
    assert generator(*words, digest=digest).integers(1 << 32, size=3).tolist() == numbers


def test_sha256_is_the_default() -> None:
    assert generator("a", 1).random() == generator("a", 1, digest=sha256_128).random()


def test_other_words_name_another_stream() -> None:
    assert len({generator(*words).random() for words in [("a",), ("b",), ("a", 0), ("a", 1)]}) == 4
