"""A number of a source is good once, in any order within the window, and never from behind it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from transport.security.replay import MAX_SOURCES, WINDOW, ReplayGuard

NUMBER = st.integers(0, (1 << 63) - 1)


@given(NUMBER, st.lists(st.integers(0, WINDOW - 1), max_size=50))
def test_each_number_is_good_once_within_the_window(base: int, offsets: list[int]) -> None:
    guard, seen = ReplayGuard(), set()
    for number in (base + offset for offset in offsets):
        assert guard.fresh("d1", number) == (number not in seen)
        seen.add(number)


@given(st.lists(NUMBER, max_size=30))
def test_a_number_is_never_fresh_twice(numbers: list[int]) -> None:
    guard = ReplayGuard()
    for number in numbers:
        guard.fresh("d1", number)
        assert not guard.fresh("d1", number)
    assert not any(guard.fresh("d1", number) for number in numbers)


def test_a_number_far_behind_is_not_fresh() -> None:
    guard = ReplayGuard()
    assert guard.fresh("d1", WINDOW)
    assert not guard.fresh("d1", 0)
    assert guard.fresh("d1", 1)


def test_sources_have_windows_of_their_own() -> None:
    guard = ReplayGuard()
    assert guard.fresh("d1", 5) and guard.fresh("d2", 5)
    assert not guard.fresh("d1", 5)


def test_invented_names_take_no_memory_without_end() -> None:
    guard = ReplayGuard()
    for name in range(2 * MAX_SOURCES):
        guard.fresh(f"x{name}", 1)
    assert len(guard._seen) == MAX_SOURCES
