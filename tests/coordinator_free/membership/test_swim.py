"""The failure detector, transition by transition: time and messages in, what to do out."""

from __future__ import annotations

import random

import pytest

from coordinator_free.membership import swim
from coordinator_free.membership.suspicion import Limits, RecordVersion
from coordinator_free.membership.swim import (
    Ack,
    AskHelp,
    Confirm,
    Correct,
    Nack,
    Ping,
    Refute,
    Settings,
    Spread,
    Swim,
)

MILLI = 1_000_000
PERIOD, ACK = 500 * MILLI, 250 * MILLI
LIMITS = Limits(PERIOD, alpha=4, beta=6, confirmations=3)
SETTINGS = Settings(PERIOD, ACK, helpers=3, worst_health=8, limits=LIMITS)


class Bench:
    """A detector and a clock that goes from one of its times to the next."""

    def __init__(self, size: int = 6, seed: int = 0) -> None:
        self.said = {f"d{i}": RecordVersion(f"d{i}", 0, 10 + i) for i in range(size)}
        self.swim = Swim("d0", SETTINGS, random.Random(seed), 0)
        self.watch()
        self.now = 0

    def watch(self, *names: str) -> None:
        self.swim.update_members(self.said, names or [name for name in self.said if name != "d0"])

    def tick(self, late: int = 0) -> list[swim.Action]:
        self.now = self.swim.next_ns() + late
        return self.swim.tick(self.now)

    def run(self, until: type[swim.Action], limit: int = 99) -> list[swim.Action]:
        """Tick until something of a kind is decided; what was decided then."""
        for _ in range(limit):
            out = self.tick()
            if any(isinstance(action, until) for action in out):
                return out
        raise AssertionError(f"no {until.__name__} in {limit} ticks")

    def probe(self) -> Ping:
        return next(action for action in self.run(Ping) if isinstance(action, Ping))

    def answered_pass(self) -> list[str]:
        """Whom it pings in as many periods as it watches others, all of whom answer."""
        targets = []
        for _ in range(len(self.said) - 1):
            ping = self.probe()
            targets.append(ping.to)
            assert self.swim.on_ack(self.now, ping.number) == []
        return targets

    def suspect(self) -> RecordVersion:
        """Let a probe go unanswered by its target and by helpers that are there."""
        ping = self.probe()
        for action in self.run(AskHelp) if len(self.said) > 2 else []:
            if isinstance(action, AskHelp):
                self.swim.on_nack(action.to, action.number)
        spread = next(a for a in self.run(Spread) if isinstance(a, Spread))
        assert spread == Spread(self.said[ping.to], "d0")
        return spread.about


# -- own probes ------------------------------------------------------------------------------------------


def test_each_pass_pings_every_member_once_in_a_new_order() -> None:
    bench = Bench()
    passes = [bench.answered_pass() for _ in range(6)]
    assert all(sorted(targets) == ["d1", "d2", "d3", "d4", "d5"] for targets in passes)
    assert len({tuple(targets) for targets in passes}) > 1


def test_one_ping_per_period() -> None:
    bench = Bench()
    times = []
    for _ in range(5):
        ping = bench.probe()
        times.append(bench.now)
        bench.swim.on_ack(bench.now, ping.number)
    assert times == [times[0] + i * PERIOD for i in range(5)]


def test_the_same_seed_makes_the_same_choices_and_another_one_others() -> None:
    orders = [Bench(seed=seed).answered_pass() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_a_device_without_members_to_watch_does_nothing() -> None:
    bench = Bench(size=1)
    assert [bench.tick() for _ in range(3)] == [[], [], []]


def test_without_an_ack_in_time_helpers_are_asked_to_ping() -> None:
    bench = Bench()
    ping = bench.probe()
    sent = bench.now
    asked = [a for a in bench.tick() if isinstance(a, AskHelp)]
    assert bench.now == sent + ACK
    assert len({a.to for a in asked}) == 3 and not {"d0", ping.to} & {a.to for a in asked}
    assert {(a.target, a.number) for a in asked} == {(ping.to, ping.number)}


@pytest.mark.parametrize("late", [False, True])
def test_an_ack_ends_a_probe_also_after_helpers_were_asked(late: bool) -> None:
    bench = Bench()
    ping = bench.probe()
    if late:
        bench.run(AskHelp)
    bench.swim.on_ack(bench.now, ping.number)
    assert not any(isinstance(a, AskHelp | Spread) for a in bench.tick())
    assert ping.to not in bench.swim.suspicions


def test_without_an_ack_by_the_periods_end_the_target_is_suspected() -> None:
    bench = Bench()
    start = bench.probe() and bench.now
    bench.run(Spread)
    assert bench.now == start + PERIOD


def test_an_ack_with_another_number_is_ignored() -> None:
    bench = Bench()
    ping = bench.probe()
    bench.swim.on_ack(bench.now, ping.number + 1)
    bench.swim.on_ack(bench.now, ping.number - 1)
    assert bench.run(Spread)


def test_a_suspected_device_is_not_asked_for_help() -> None:
    bench = Bench()
    suspected = bench.suspect().device
    for _ in range(2):
        asked = [a.to for a in bench.run(AskHelp) if isinstance(a, AskHelp)]
        assert suspected not in asked


def test_a_device_no_longer_watched_is_not_suspected_for_an_open_probe() -> None:
    bench = Bench()
    ping = bench.probe()
    bench.watch(*(name for name in bench.said if name not in ("d0", ping.to)))
    for _ in range(8):
        assert not [a for a in bench.tick() if isinstance(a, Spread) and a.about.device == ping.to]


def test_a_newcomer_is_pinged_within_little_more_than_a_pass() -> None:
    bench = Bench()
    bench.answered_pass()
    bench.said["d6"] = RecordVersion("d6", 0, 1)
    bench.watch()
    assert "d6" in bench.answered_pass()


# -- local health ----------------------------------------------------------------------------------------


def test_nacks_of_all_helpers_keep_the_local_health() -> None:
    bench = Bench()
    bench.suspect()
    assert bench.swim.health.score == 0


def test_helpers_without_a_nack_worsen_the_local_health() -> None:
    bench = Bench()
    bench.run(Spread)
    assert bench.swim.health.score == 3


def test_without_helpers_a_failed_probe_worsens_the_local_health_by_one() -> None:
    bench = Bench(size=2)
    bench.run(Spread)
    assert bench.swim.health.score == 1


def test_a_device_that_may_be_slow_itself_waits_longer_until_answers_come() -> None:
    bench = Bench()
    bench.swim.health.worse(2)
    ping = bench.probe()
    sent = bench.now
    bench.run(AskHelp)
    assert bench.now == sent + 3 * ACK
    bench.swim.on_ack(bench.now, ping.number)
    assert bench.swim.health.score == 1
    ping = bench.probe()
    assert bench.now == sent + 3 * PERIOD
    bench.swim.on_ack(bench.now, ping.number)
    assert bench.probe() and bench.now == sent + 5 * PERIOD


def test_health_stays_between_its_bounds() -> None:
    bench = Bench()
    bench.swim.health.better()
    assert bench.swim.health.score == 0
    bench.swim.health.worse(99)
    assert (bench.swim.health.score, bench.swim.health.factor) == (8, 9)


def test_a_suspended_device_reads_its_messages_before_it_suspects_others() -> None:
    bench = Bench()
    suspected = bench.suspect()
    for accuser in ("d3", "d4", "d5", "d2", "d1"):
        if accuser != suspected.device:
            bench.swim.on_suspect(bench.now, accuser, suspected, accuser)
    end = bench.swim.suspicions.next_ns()
    assert end is not None
    late = 60_000 * MILLI
    out = bench.tick(late)
    assert not [a for a in out if isinstance(a, Confirm | Spread)]
    assert bench.swim.suspicions.next_ns() == end + late + ACK
    assert bench.swim.health.score >= 1
    assert bench.swim.next_ns() > bench.now


def test_a_slightly_late_tick_does_not_worsen_the_local_health() -> None:
    bench = Bench()
    bench.probe()
    assert [a for a in bench.tick(ACK // 2) if isinstance(a, AskHelp)]
    assert bench.swim.health.score == 0


# -- on behalf of others ---------------------------------------------------------------------------------


def test_a_helper_pings_and_passes_the_ack_on() -> None:
    bench = Bench()
    (ping,) = bench.swim.on_ping_request(0, "d4", "d5", 77)
    assert isinstance(ping, Ping) and ping.to == "d5"
    assert bench.swim.on_ack(0, ping.number) == [Ack("d4", 77)]
    assert bench.swim.on_ack(0, ping.number) == []


def test_a_helper_sends_a_nack_and_still_passes_on_a_late_ack() -> None:
    bench = Bench(size=3)
    bench.watch("d1")
    (ping,) = bench.swim.on_ping_request(0, "d1", "d2", 77)
    assert isinstance(ping, Ping)
    assert Nack("d1", 77) in bench.run(Nack)
    assert bench.swim.on_ack(bench.now, ping.number) == [Ack("d1", 77)]


def test_a_helper_forgets_an_indirect_probe_after_a_period() -> None:
    bench = Bench(size=3)
    (ping,) = bench.swim.on_ping_request(0, "d1", "d2", 77)
    assert isinstance(ping, Ping)
    while bench.now <= PERIOD:
        bench.tick()
    assert bench.swim.on_ack(bench.now, ping.number) == []


@pytest.mark.parametrize("target", ["stranger", "d0"])
def test_a_request_to_ping_a_stranger_or_itself_is_ignored(target: str) -> None:
    assert Bench().swim.on_ping_request(0, "d1", target, 1) == []


def test_a_helper_bounds_the_number_of_indirect_probes() -> None:
    bench = Bench()
    pings = [
        bench.swim.on_ping_request(0, "d1", "d2", number) for number in range(2 * swim.MAX_INDIRECT_PROBES)
    ]
    assert sum(map(len, pings)) == swim.MAX_INDIRECT_PROBES


# -- suspicions ------------------------------------------------------------------------------------------


def test_a_suspicion_is_passed_on_once_for_each_accuser_that_counts() -> None:
    bench = Bench(size=9)
    about = bench.said["d5"]
    accusers = ["d1", "d1", "d2", "d3", "d4", "d6"]
    out = [bench.swim.on_suspect(0, "d1", about, accuser) for accuser in accusers]
    news = [Spread(about, accuser) for accuser in ("d1", "d2", "d3", "d4")]
    assert out == [[news[0]], [], [news[1]], [news[2]], [news[3]], []]


def test_a_suspected_device_is_told_of_it_in_each_period() -> None:
    bench = Bench(size=2)
    about = bench.suspect()
    assert bench.run(Ping)[0] == Spread(about, "d0", again=True)


def test_a_device_counts_as_crashed_after_the_deadline_of_its_suspicion() -> None:
    bench = Bench()
    suspected = bench.suspect()
    since = bench.now
    for accuser in ("d1", "d2", "d3", "d4", "d5"):
        if accuser != suspected.device:
            bench.swim.on_suspect(bench.now, accuser, suspected, accuser)
    bench.watch(*[])
    confirm = next(a for a in bench.run(Confirm) if isinstance(a, Confirm))
    assert confirm.about == suspected and confirm.suspected_ns == since and len(confirm.accusers) == 4
    assert bench.now == since + 4 * PERIOD


def test_a_later_record_refutes_a_suspicion() -> None:
    bench = Bench()
    suspected = bench.suspect()
    bench.said[suspected.device] = suspected._replace(lamport=99)
    bench.watch()
    assert suspected.device not in bench.swim.suspicions


def test_one_that_left_retired_or_finished_is_suspected_no_more() -> None:
    bench = Bench()
    suspected = bench.suspect()
    del bench.said[suspected.device]
    bench.watch()
    assert suspected.device not in bench.swim.suspicions


def test_an_accuser_of_an_old_record_gets_the_latest_record() -> None:
    bench = Bench()
    old = bench.said["d5"]._replace(lamport=3)
    assert bench.swim.on_suspect(0, "d1", old, "d2") == [Correct("d1", "d5")]
    assert "d5" not in bench.swim.suspicions


def test_a_suspicion_of_an_unknown_record_applies_to_the_latest_known_one() -> None:
    bench = Bench()
    later = bench.said["d5"]._replace(lamport=10**9)
    assert bench.swim.on_suspect(0, "d1", later, "d2") == [Spread(bench.said["d5"], "d2")]


def test_a_stranger_is_not_suspected() -> None:
    assert Bench().swim.on_suspect(0, "d1", RecordVersion("mallory", 0, 1), "d1") == []


def test_a_stranger_cannot_accuse() -> None:
    bench = Bench()
    assert bench.swim.on_suspect(0, "d1", bench.said["d5"], "mallory") == []


def test_a_suspicion_of_this_device_is_refuted_and_worsens_the_local_health() -> None:
    bench = Bench()
    assert bench.swim.on_suspect(0, "d1", bench.said["d0"], "d2") == [Refute()]
    assert bench.swim.health.score == 1


def test_an_already_refuted_suspicion_is_answered_to_its_sender_only() -> None:
    bench = Bench()
    old = bench.said["d0"]._replace(lamport=1)
    assert bench.swim.on_suspect(0, "d1", old, "d2") == [Correct("d1", "d0")]
    assert bench.swim.health.score == 0


def test_a_suspicion_of_a_forged_record_of_this_device_is_ignored() -> None:
    bench = Bench()
    assert bench.swim.on_suspect(0, "d1", bench.said["d0"]._replace(lamport=10**9), "d2") == []
