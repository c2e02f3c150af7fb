"""How long a suspicion lasts, who counts as an accuser, and what ends it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator_free.membership.suspicion import Limits, RecordVersion, Suspicions

SECOND = 1_000_000_000
LIMITS = Limits(SECOND // 2, alpha=4, beta=6, confirmations=3)
D1 = RecordVersion("d1", 0, 5)


@pytest.mark.parametrize(
    ("members", "confirmations", "seconds"),
    [
        (8, 3, 2.0),  # alpha * max(1, log10 8 < 1) * 0.5 s
        (8, 0, 12.0),  # beta times that
        (8, 1, 7.0),  # 12 - 10 * log 2 / log 4
        (100, 3, 4.0),  # log10 100 = 2
        (4, 2, 2.0),  # only two others could agree
        (4, 1, 12.0 - 10.0 * 0.6309297535714574),  # log 2 / log 3
        (3, 0, 12.0),
        (3, 1, 2.0),
        (2, 0, 2.0),  # nobody else could: there is nothing to wait for
        (8, 9, 2.0),
    ],
)
def test_the_timeout_shrinks_with_the_number_of_confirmations(
    members: int, confirmations: int, seconds: float
) -> None:
    assert LIMITS.timeout_ns(members, confirmations) == pytest.approx(seconds * SECOND)


def test_the_shortest_timeout_can_be_configured() -> None:
    limits = Limits(SECOND, alpha=4, beta=6, confirmations=3, low_ns=SECOND)
    assert [limits.timeout_ns(32, c) for c in (3, 0)] == [SECOND, 6 * SECOND]


@given(st.integers(2, 100), st.integers(0, 5))
def test_more_accusers_never_lengthen_the_timeout(members: int, confirmations: int) -> None:
    assert LIMITS.timeout_ns(members, confirmations) >= LIMITS.timeout_ns(members, confirmations + 1)


def test_each_accuser_counts_once_and_at_most_k_count() -> None:
    suspicions = Suspicions(LIMITS)
    told = [suspicions.accuse(0, D1, accuser, 8) for accuser in ("d2", "d2", "d3", "d4", "d5", "d6")]
    assert told == [True, False, True, True, True, False]


def test_each_accuser_shortens_the_deadline_and_a_suspicion_expires_once() -> None:
    suspicions = Suspicions(LIMITS)
    suspicions.accuse(0, D1, "d2", 8)
    assert suspicions.next_ns() == 12 * SECOND
    for accuser in ("d3", "d4", "d5"):
        suspicions.accuse(SECOND, D1, accuser, 8)
    assert suspicions.next_ns() == 2 * SECOND
    assert suspicions.pop_expired(2 * SECOND - 1) == []
    assert [s.about for s in suspicions.pop_expired(2 * SECOND)] == [D1]
    assert suspicions.pop_expired(2 * SECOND) == [] and "d1" not in suspicions


def test_a_later_record_of_the_subject_refutes_and_an_older_one_does_not() -> None:
    suspicions = Suspicions(LIMITS)
    suspicions.accuse(0, D1, "d2", 8)
    suspicions.on_record(D1)
    assert "d1" in suspicions
    suspicions.on_record(D1._replace(lamport=6))
    assert "d1" not in suspicions and suspicions.next_ns() is None


def test_a_suspicion_of_a_later_record_starts_again_and_one_of_an_older_record_is_ignored() -> None:
    suspicions = Suspicions(LIMITS)
    suspicions.accuse(0, D1, "d2", 8)
    assert suspicions.accuse(SECOND, D1._replace(lamport=6), "d2", 8)
    assert suspicions.next_ns() == 13 * SECOND
    assert not suspicions.accuse(SECOND, D1, "d3", 8)


def test_time_in_which_the_observer_did_not_run_does_not_count() -> None:
    suspicions = Suspicions(LIMITS)
    suspicions.accuse(0, D1, "d2", 2)
    suspicions.postpone(5 * SECOND)
    assert suspicions.next_ns() == 7 * SECOND
    suspicions.accuse(0, D1, "d3", 3)
    assert suspicions.next_ns() == 7 * SECOND


def test_an_unknown_device_is_no_longer_suspected() -> None:
    suspicions = Suspicions(LIMITS)
    suspicions.accuse(0, D1, "d2", 8)
    suspicions.accuse(0, RecordVersion("d3", 0, 1), "d2", 8)
    suspicions.keep_only(["d3"])
    assert "d1" not in suspicions and "d3" in suspicions
