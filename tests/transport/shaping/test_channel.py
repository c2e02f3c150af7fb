"""The quality of links and the cost of bytes."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.shaping.channel import Channel, FixedChannel, LinkQuality, cost_bytes

LINK = LinkQuality(rate_Bps=1000, latency_ns=5_000_000)
sizes = st.integers(0, 1 << 40)
rates = st.integers(1, 1 << 40)


def test_a_fixed_channel_is_the_same_for_all() -> None:
    channel: Channel = FixedChannel(LINK)
    assert channel.link(0, "a", "b", ["a", "b"]) == channel.link(9, "b", "c", ["c"]) == LINK
    assert channel.min_latency_ns == 5_000_000
    assert pickle.loads(pickle.dumps(channel)) == channel


@pytest.mark.parametrize(
    ("size", "rate", "beta", "cost"),
    [(1000, 500, 0, 1000), (1000, 500, 100, 1200), (1, 1000, 1, 2), (0, 7, 9, 0), (1000, 1, 1, 2000)],
)
def test_cost_by_hand(size: int, rate: int, beta: int, cost: int) -> None:
    assert cost_bytes(size, rate, beta) == cost


@given(sizes, rates, st.integers(0, 1 << 40))
def test_cost_is_the_formula_rounded_up(size: int, rate: int, beta: int) -> None:
    assert cost_bytes(size, rate, beta) == math.ceil(size + beta * Fraction(size, rate))


@given(st.floats(0, 1e12), st.integers(1, 1 << 40), st.floats(1e-3, 1e6))
def test_an_outage_is_an_update_time_above_tau_max(rate: float, size: int, tau: float) -> None:
    link = LINK.at_rate(rate, size, tau)
    assert link.outage == (math.floor(rate) < math.ceil(size / tau))
    assert link.rate_Bps == max(math.floor(rate), math.ceil(size / tau))
    assert link.latency_ns == LINK.latency_ns


def test_outage_at_the_limit() -> None:
    assert not LINK.at_rate(500, 1000, 2.0).outage
    assert LINK.at_rate(499.9, 1000, 2.0).outage


@pytest.mark.parametrize(
    "wrong", [{"rate_Bps": 0}, {"latency_ns": 0}, {"jitter_ns": -1}, {"loss": 1.5}, {"loss": math.nan}]
)
def test_impossible_links_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="invalid link quality"):
        LinkQuality(**{"rate_Bps": 1, "latency_ns": 1, **wrong})  # type: ignore[arg-type]
