"""The token bucket never exceeds its bound, to the byte; the quota does not carry over."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.shaping.round_budget import Quota
from transport.shaping.token_bucket import SECOND_NS, TokenBucket, generated_violations, keeps_invariant

RATES = st.integers(1, 10**10)
TRAFFIC = st.lists(st.tuples(st.integers(0, 10**12), st.integers(1, 5000)), min_size=1, max_size=30)


def paced(bucket: TokenBucket, traffic: list[tuple[int, int]]) -> list[tuple[int, int]]:
    now, sends = 0, []
    for wait_ns, size in traffic:
        now = bucket.earliest(now + wait_ns, size)
        bucket.take(now, size)
        sends.append((now, size))
    return sends


@settings(max_examples=300)
@given(RATES, st.integers(1, 10_000), TRAFFIC)
def test_no_window_passes_more_than_burst_plus_rate_times_its_length(rate, burst, traffic) -> None:
    sends = paced(TokenBucket(rate, burst), traffic)
    for i in range(len(sends)):
        for k in range(i, len(sends)):
            total = sum(size for _, size in sends[i : k + 1])
            allowed = max(burst, sends[k][1]) * SECOND_NS + rate * (sends[k][0] - sends[i][0])
            assert total * SECOND_NS <= allowed
    assert keeps_invariant(sends, rate, burst)


@settings(max_examples=200)
@given(RATES, st.integers(1, 10_000), TRAFFIC)
def test_nothing_waits_a_nanosecond_longer_than_it_must(rate, burst, traffic) -> None:
    bucket, now = TokenBucket(rate, burst), 0
    for wait_ns, size in traffic:
        now += wait_ns
        at = bucket.earliest(now, size)
        if at > now:
            assert bucket.earliest(at - 1, size) == at
        bucket.take(at, size)
        now = at


def test_ten_thousand_generated_cases_keep_the_invariant() -> None:
    assert generated_violations(10_000, seed=1) == 0


def test_the_invariant_check_detects_one_byte_too_many() -> None:
    assert keeps_invariant([(0, 10), (SECOND_NS, 5)], rate_Bps=5, burst_bytes=10)
    assert not keeps_invariant([(0, 10), (SECOND_NS, 6)], rate_Bps=5, burst_bytes=10)


def test_a_packet_larger_than_the_burst_passes_when_full_and_leaves_a_debt() -> None:
    bucket = TokenBucket(rate_Bps=10, burst_bytes=10)
    assert bucket.earliest(0, 30) == 0
    bucket.take(0, 30)
    assert bucket.earliest(0, 10) == 3 * SECOND_NS  # 20 owed and 10 wanted


def test_a_clock_that_steps_back_earns_nothing() -> None:
    bucket = TokenBucket(rate_Bps=10, burst_bytes=10, now_ns=SECOND_NS)
    bucket.take(SECOND_NS, 10)
    assert bucket.earliest(0, 10) == 2 * SECOND_NS
    bucket.take(0, 0)
    assert bucket.earliest(SECOND_NS, 10) == 2 * SECOND_NS


def test_a_new_rate_applies_from_now_on() -> None:
    bucket = TokenBucket(rate_Bps=10, burst_bytes=100)
    bucket.take(0, 100)
    bucket.set_rate(SECOND_NS, 1)
    assert bucket.earliest(SECOND_NS, 12) == 3 * SECOND_NS


@pytest.mark.parametrize("rate, burst", [(0, 1), (1, 0)])
def test_a_bucket_without_rate_or_depth_is_refused(rate: int, burst: int) -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        TokenBucket(rate, burst)


def test_a_quota_is_set_anew_and_does_not_carry_over() -> None:
    quota = Quota(1000, control_share=0.05)
    assert (quota.remaining, quota.data_left()) == (0, 0)  # nothing is granted before the first round
    quota.start_round(0)
    quota.spend(100)
    assert (quota.remaining, quota.data_left()) == (900, 850)
    quota.start_round(1)
    assert (quota.remaining, quota.data_left(), quota.spent) == (1000, 950, 0)
    assert (quota.granted_total, quota.spent_total, quota.violations) == (2000, 100, 0)


def test_the_control_share_is_reserved_and_more_control_leaves_less_for_data() -> None:
    quota = Quota(1000, control_share=0.05)
    quota.start_round(0)
    quota.spend(50, data=False)
    assert quota.data_left() == 950
    quota.spend(10, data=False)
    assert quota.data_left() == 940


def test_a_round_that_spends_more_is_a_violation_at_once_and_counted_once() -> None:
    quota = Quota(1000)
    quota.spend(2000, data=False)  # before the first round: of no round
    assert quota.violations == 0
    quota.start_round(0)
    quota.spend(950)
    quota.spend(51, data=False)
    assert (quota.violations, quota.remaining) == (1, 0)
    quota.spend(51, data=False)
    quota.start_round(1)
    assert quota.violations == 1
    quota.spend(1000, data=False)
    assert quota.violations == 1
