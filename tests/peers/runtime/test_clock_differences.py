"""The difference of two hosts' clocks, measured with the heartbeat."""

from __future__ import annotations

import random

import pytest

from peers.protocol.actions import Tell
from peers.runtime.clock_differences import PERIOD_NS, TELL_NS, ClockDifferences
from transport.shaping.accounting import Accounts
from transport.wire.messages import Ack, Credit, Ping, Transit

MS = 1_000_000
DIGEST = b"v" * 16
AHEAD_NS = 200 * MS  # of the clock of d1


class Host:
    """A device on a host of its own; its clock is `ahead_ns` ahead of true time."""

    def __init__(self, ahead_ns: int) -> None:
        self.ahead_ns, self.accounts = ahead_ns, Accounts()
        self.differences = ClockDifferences(self.accounts)

    def clock_of(self, peer: str) -> dict[str, float]:
        found: dict[str, float] = self.accounts.to_dict()[peer]["clock_s"]
        return found


def exchange(d0: Host, d1: Host, rounds: int, transit_ns: int, noise_ns: int, at_ns: int = 0) -> int:
    """Probes both ways, each late by a random part of `noise_ns`; returns the time after them."""
    draw, hosts = random.Random(1), {"d0": d0, "d1": d1}
    for _ in range(rounds):
        for source, target in (("d0", "d1"), ("d1", "d0")):
            depart_ns = at_ns + hosts[source].ahead_ns
            at_ns += transit_ns + draw.randrange(noise_ns)
            now_ns = at_ns + hosts[target].ahead_ns
            hosts[target].differences.on_received(source, depart_ns, now_ns)
            told = hosts[target].differences.told_with(Tell(source, Ack(1, DIGEST)), now_ns)
            if told is not None:
                assert isinstance(told.message, Transit)
                hosts[source].differences.on_transit(target, told.message)
        at_ns += TELL_NS
    return at_ns


@pytest.mark.parametrize(("transit_ms", "noise_ms"), [(1, 1), (40, 30)])
def test_the_difference_is_measured_and_its_error_is_half_a_round_trip(
    transit_ms: int, noise_ms: int
) -> None:
    d0, d1 = Host(0), Host(AHEAD_NS)
    exchange(d0, d1, 20, transit_ms * MS, noise_ms * MS)
    there, back = d0.clock_of("d1"), d1.clock_of("d0")
    assert there["difference"] == pytest.approx(-0.2, abs=1e-3 * noise_ms)
    assert back["difference"] == pytest.approx(0.2, abs=1e-3 * noise_ms)
    for clock, true_s in ((there, -0.2), (back, 0.2)):
        assert abs(clock["difference"] - true_s) <= clock["error"] + 1e-9
        assert clock["error"] == pytest.approx(1e-3 * transit_ms, abs=1e-3 * noise_ms)


def test_a_clock_that_was_set_is_measured_again() -> None:
    d0, d1 = Host(0), Host(AHEAD_NS)
    at_ns = exchange(d0, d1, 5, MS, MS)
    d1.ahead_ns = 0  # the host's clock was set; the smallest values of before hold for two periods
    exchange(d0, d1, 3 + 2 * PERIOD_NS // TELL_NS, MS, MS, at_ns)
    assert d0.clock_of("d1")["difference"] == pytest.approx(0, abs=1e-3)


def test_a_false_transit_changes_the_clock_of_its_own_link_only() -> None:
    d0, d1 = Host(0), Host(AHEAD_NS)
    exchange(d0, d1, 5, MS, MS)
    before = d0.clock_of("d1")
    d0.differences.on_received("d2", 0, MS)
    d0.differences.on_transit("d2", Transit(1 << 62))
    d0.differences.on_transit("d3", Transit(5))  # nothing was received from d3
    assert d0.clock_of("d1") == before
    assert set(d0.accounts.to_dict()) == {"d1", "d2"}


def test_a_transit_goes_with_probes_and_answers_only_and_not_too_often() -> None:
    host = Host(0)
    assert host.differences.told_with(Tell("d1", Ping(1, DIGEST)), 0) is None  # nothing was received yet
    host.differences.on_received("d1", 0, 5)
    assert host.differences.told_with(Tell("d1", Credit(1)), 10) is None
    assert host.differences.told_with(Tell("d1", Ping(1, DIGEST)), 10) == Tell("d1", Transit(5))
    assert host.differences.told_with(Tell("d1", Ping(1, DIGEST)), 11) is None
    assert host.differences.told_with(Tell("d1", Ack(1, DIGEST)), 10 + TELL_NS) == Tell("d1", Transit(5))


def test_a_device_on_one_host_has_no_clock_in_its_records() -> None:
    accounts = Accounts()
    accounts.link("d1").received(10, 5)
    assert "clock_s" not in accounts.to_dict()["d1"]
