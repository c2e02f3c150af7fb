"""The shaper: first in first out, fair, within the quota; control never waits; every byte is counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.shaping.outgoing import Departure, Outgoing
from transport.shaping.round_budget import Quota
from transport.shaping.shaper import Shaper
from transport.shaping.token_bucket import SECOND_NS, keeps_invariant

FRAME = 1000


def shaper(rate_Bps: int = 10_000, budget: int = 10**9, started: bool = True, **kwargs) -> Shaper:
    made = Shaper(rate_Bps, FRAME, Quota(budget, 0.05), **kwargs)
    if started:
        made.quota.start_round(0)
    return made


def item(peer="b", size=FRAME, cause="train", tag="", content=None) -> Outgoing:
    return Outgoing(peer, cause, [tag.encode()], size, content=content)


def without(content) -> Callable[[Outgoing], Outgoing | None]:
    """For `purge`: messages with another content stay."""
    return lambda queued: None if queued.content == content else queued


def put(made: Shaper, queued: Outgoing) -> None:
    """As the sender does: control ahead of data."""
    (made.queue_control if queued.cause == "control" else made.queue_data)(queued)


def drain(made: Shaper, now: int = 0) -> list[Departure]:
    out = made.pop(now)
    while (due := made.next_ns(now)) is not None:
        assert due > now, "after a pop the next thing to do lies ahead: a driver must never spin"
        now = due
        out += made.pop(now)
    return out


def tags(departures) -> list[str]:
    return [bytes(d.frames[0]).decode() for d in departures]


# -- random traffic ------------------------------------------------------------------------------------
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"),
            st.sampled_from("bcd"),
            st.integers(1, FRAME),
            st.sampled_from(["train", "correction", "transfer", "control"]),
            st.integers(0, 3),
        ),
        st.tuples(st.just("last"), st.sampled_from("bcd"), st.integers(1, FRAME)),
        st.tuples(st.just("wait"), st.integers(0, SECOND_NS)),
        st.tuples(st.just("round")),
        st.tuples(st.just("purge"), st.sampled_from("bcd")),
        st.tuples(st.just("shrink"), st.integers(0, 4)),
        st.tuples(
            st.just("link"),
            st.sampled_from("bcd"),
            st.none() | st.integers(1, 20_000),
            st.integers(0, 10**8),
            st.integers(0, 10**7),
            st.sampled_from([0.0, 0.3, 1.0]),
            st.booleans(),
        ),
    ),
    max_size=40,
)


class World:
    """Applies operations to a shaper and keeps what came out, with the time and round of each departure."""

    def __init__(self, budget: int) -> None:
        self.shaper = shaper(budget=budget, seed=3)
        self.now, self.serial = 0, 0
        self.out: list[Any] = []
        self.data_in_round: Counter[int | None] = Counter()
        self.urgent: set[str] = set()  # control that need not come after data

    def put(self, peer, size, cause, version) -> None:
        self.serial += 1
        if cause == "control":
            self.urgent.add(str(self.serial))
        put(self.shaper, item(peer, size, cause, str(self.serial), None if cause == "control" else version))

    def last(self, peer, size) -> None:
        self.serial += 1
        self.shaper.queue_data(item(peer, size, "control", str(self.serial)))

    def wait(self, ns) -> None:
        self.now += ns

    def round(self) -> None:
        self.shaper.quota.start_round()

    def purge(self, peer) -> None:
        self.shaper.purge(lambda i: None if i.peer == peer else i, "gone")

    def shrink(self, version) -> None:
        """Older data lose half of their bytes, and the oldest all."""

        def rest(queued: Outgoing) -> Outgoing | None:
            if queued.content is None or queued.content > version:
                return queued
            return replace(queued, wire_bytes=queued.wire_bytes // 2) if queued.content else None

        self.shaper.purge(rest, "older")

    def link(self, peer, rate, latency, jitter, loss, outage) -> None:
        self.shaper.set_link(peer, rate, latency, jitter, loss, outage, now_ns=self.now)

    def step(self, operation) -> None:
        name, *arguments = operation
        getattr(self, name)(*arguments)
        for departure in self.shaper.pop(self.now):
            self.out.append((self.now, departure))
            if departure.cause != "control":
                self.data_in_round[self.shaper.quota.round] += departure.wire_bytes
        due = self.shaper.next_ns(self.now)
        assert due is None or due > self.now


def run(operations, budget: int) -> World:
    world = World(budget)
    for operation in operations:
        world.step(operation)
    return world


@settings(max_examples=300)
@given(OPERATIONS, st.integers(2000, 20_000))
def test_every_queued_message_and_byte_is_sent_shed_purged_or_pending(operations, budget) -> None:
    made = run(operations, budget).shaper
    pending, messages = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for waiting in made.pending():
        pending[waiting.peer, waiting.cause] += waiting.wire_bytes
        messages[waiting.peer, waiting.cause] += 1
    left = made.sent.messages + made.shed.messages + made.purged.messages + messages
    assert made.queued.messages == left
    assert made.queued.bytes == made.sent.bytes + made.shed.bytes + made.purged.bytes + pending
    assert made.lost.bytes <= made.sent.bytes
    assert made.spent == made.sent.bytes.total()
    assert sum(made.purged_bytes_by_reason.values()) == made.purged.bytes.total()


@settings(max_examples=300)
@given(OPERATIONS, st.integers(2000, 20_000))
def test_data_never_exceeds_a_rounds_quota_less_the_control_share(operations, budget) -> None:
    world = run(operations, budget)
    assert all(size <= budget - int(budget * 0.05) for size in world.data_in_round.values())


@settings(max_examples=300)
@given(OPERATIONS)
def test_each_link_is_first_in_first_out_in_departure_and_arrival(operations) -> None:
    world = run(operations, 10**9)
    by_link: dict[tuple[str, bool], list[Departure]] = {}
    for now, departure in world.out:
        assert now < departure.depart_ns <= departure.arrive_ns
        urgent = tags([departure])[0] in world.urgent
        by_link.setdefault((departure.peer, urgent), []).append(departure)
    for departures in by_link.values():
        numbers = [int(t) for t in tags(departures)]
        assert numbers == sorted(numbers)
        arrivals = [d.arrive_ns for d in departures]
        assert arrivals == sorted(arrivals)


@settings(max_examples=200)
@given(OPERATIONS)
def test_the_same_operations_give_the_same_departures(operations) -> None:
    assert run(operations, 9000).out == run(operations, 9000).out


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from("bcd"), st.integers(1, FRAME)), min_size=1, max_size=60))
def test_data_keeps_the_bucket_invariant_on_the_device_and_on_each_link(messages) -> None:
    made = shaper(rate_Bps=10_000)
    made.set_link("b", rate_Bps=2000)
    for peer, size in messages:
        put(made, item(peer, size))
    now, sends = 0, []
    while True:
        sends += [(now, d.peer, d.wire_bytes) for d in made.pop(now)]
        due = made.next_ns()
        if due is None:
            break
        now = due
    assert len(sends) == len(messages)
    assert keeps_invariant([(t, s) for t, _, s in sends], 10_000, 2 * FRAME)
    assert keeps_invariant([(t, s) for t, p, s in sends if p == "b"], 2000, 2 * FRAME)


# -- classes and turns ---------------------------------------------------------------------------------
def test_control_leaves_at_once_past_any_amount_of_data_and_its_arrival_does_not_wait_either() -> None:
    made = shaper(rate_Bps=1000)
    for _ in range(10):
        put(made, item())
    made.pop(0)
    put(made, item(cause="control", size=100, tag="ping"))
    assert made.next_ns(5) == 5
    (ping,) = made.pop(5)
    assert tags([ping]) == ["ping"]
    assert ping.depart_ns == 5 + SECOND_NS // 10


def test_data_waits_for_the_tokens_and_the_line_that_control_used() -> None:
    made = shaper(rate_Bps=1000)
    put(made, item(cause="control", size=2000))
    made.pop(0)
    put(made, item(size=1000))
    assert made.pop(0) == []
    assert made.next_ns() == SECOND_NS
    assert made.pop(SECOND_NS)[0].depart_ns == 3 * SECOND_NS


def test_control_queued_as_data_comes_after_it_but_is_not_refused_by_the_quota() -> None:
    made = shaper(budget=2000)
    made.queue_data(item(tag="data"))
    made.queue_data(item(cause="control", size=100, tag="manifest"))
    made.queue_data(item(tag="too much"))
    assert tags(drain(made)) == ["data", "manifest"]
    assert made.next_ns() is None
    made.quota.start_round()
    assert tags(drain(made)) == ["too much"]


def test_links_take_turns_message_by_message() -> None:
    made = shaper()
    for tag in ("b1", "b2", "b3"):
        put(made, item("b", tag=tag))
    for tag in ("c1", "c2"):
        put(made, item("c", tag=tag))
    assert tags(drain(made)) == ["b1", "c1", "b2", "c2", "b3"]


def test_small_messages_on_one_link_do_not_starve_large_ones_on_another() -> None:
    made = shaper()
    for _ in range(50):
        put(made, item("b", size=100, tag="s"))
    put(made, item("c", size=FRAME, tag="L"))
    assert tags(drain(made)).index("L") == 1


def test_a_link_that_must_wait_for_its_own_rate_does_not_hold_others_up() -> None:
    made = shaper(rate_Bps=10**6)
    made.set_link("b", rate_Bps=100)
    for n in range(4):
        put(made, item("b", tag=f"b{n}"))
        put(made, item("c", tag=f"c{n}"))
    order = tags(drain(made))
    assert order.index("c3") < order.index("b2")


def test_before_the_first_round_data_waits_and_control_goes() -> None:
    made = shaper(started=False)
    put(made, item())
    put(made, item(cause="control", size=10))
    assert [d.cause for d in made.pop(0)] == ["control"]
    assert made.next_ns() is None
    made.quota.start_round(0)
    assert made.next_ns() == 0
    assert (made.granted, made.violations) == (10**9, 0)


def test_control_beyond_the_budget_is_sent_and_makes_a_violation() -> None:
    made = shaper(budget=1000)
    put(made, item(cause="control", size=1001))
    assert len(made.pop(0)) == 1
    assert (made.violations, made.spent) == (1, 1001)


# -- times ---------------------------------------------------------------------------------------------
def test_arrival_is_serialisation_at_the_link_rate_then_latency() -> None:
    made = shaper(rate_Bps=10**9)
    made.set_link("b", rate_Bps=1000, latency_ns=7)
    put(made, item())
    put(made, item())
    departures = made.pop(0)
    assert [d.depart_ns for d in departures] == [SECOND_NS, 2 * SECOND_NS]
    assert [d.arrive_ns for d in departures] == [SECOND_NS + 7, 2 * SECOND_NS + 7]


def test_delivered_rate_is_the_configured_rate_even_when_every_wakeup_is_late() -> None:
    made, late = shaper(rate_Bps=125_000), 600_000
    for _ in range(500):
        put(made, item())
    now, arrivals = 0, []
    while (due := made.next_ns(now)) is not None:
        now = max(now, due) + late
        arrivals += [d.arrive_ns for d in made.pop(now)]
    rate = 499 * FRAME * SECOND_NS / (arrivals[-1] - arrivals[0])
    assert rate == pytest.approx(125_000, rel=0.01)


def test_jitter_and_loss_depend_on_the_seed_and_not_on_other_traffic() -> None:
    def fates(seed: int, pings: int) -> list[tuple[int, bool]]:
        made = shaper(rate_Bps=10**9, seed=seed)
        made.set_link("b", latency_ns=10**6, jitter_ns=10**6, loss=0.5)
        out = []
        for n in range(20):
            for _ in range(pings):
                put(made, item(cause="control", size=1))
                put(made, item(peer="c", size=1))
            put(made, item(size=1))
            sent = made.pop(n * 10**8)
            out += [(d.arrive_ns - d.depart_ns, d.lost) for d in sent if d.peer == "b" and d.cause == "train"]
        return out

    assert fates(1, 0) == fates(1, 2) != fates(2, 0)
    assert {lost for _, lost in fates(1, 0)} == {True, False}


def test_in_outage_data_waits_and_control_passes() -> None:
    made = shaper()
    made.set_link("b", outage=True)
    put(made, item())
    put(made, item(cause="control", size=10))
    assert [d.cause for d in drain(made)] == ["control"]
    made.set_link("b")
    assert [d.cause for d in drain(made)] == ["train"]


@pytest.mark.parametrize("bad", [{"rate_Bps": 0}, {"latency_ns": -1}, {"jitter_ns": -1}, {"loss": 1.1}])
def test_impossible_links_are_refused(bad) -> None:
    with pytest.raises(ValueError, match=r"a link needs|loss must be"):
        shaper().set_link("b", **bad)


# -- taken back ----------------------------------------------------------------------------------------
def test_what_has_not_been_sent_of_an_update_can_be_removed() -> None:
    made = shaper()
    for n in range(5):
        put(made, item(tag=f"old{n}", content="x"))
    put(made, item(tag="other", content="y"))
    sent = made.pop(0)
    gone = made.purge(without("x"), "superseded")
    put(made, item(tag="new", content="x"))
    assert (len(sent), gone.messages, gone.bytes) == (2, 3, 3 * FRAME)
    assert tags(drain(made)) == ["other", "new"]
    assert made.purged.bytes["b", "train"] == 3 * FRAME


def test_a_message_that_shrinks_keeps_its_place_and_only_the_difference_is_counted() -> None:
    made = shaper()
    for tag in ("first", "second"):
        put(made, item(tag=tag, content=tag))
    small = item(tag="small", size=300, content="first")
    gone = made.purge(lambda queued: small if queued.content == "first" else queued, "deleted")
    assert (gone.messages, gone.bytes, gone.bytes_by_peer) == (0, FRAME - 300, {"b": FRAME - 300})
    assert made.purged_bytes_by_reason == {("b", "deleted"): FRAME - 300}
    assert (made.purged.messages.total(), made.purged.bytes.total()) == (0, FRAME - 300)
    assert [(bytes(d.frames[0]), d.wire_bytes) for d in drain(made)] == [(b"small", 300), (b"second", FRAME)]


def test_data_can_be_removed_from_one_link_alone() -> None:
    made = shaper()
    for peer in "bc":
        put(made, item(peer, content="x", tag=peer))
    assert made.purge(without("x"), "superseded", "c").bytes_by_peer == {"c": FRAME}
    assert tags(drain(made)) == ["b"]


def test_deletion_takes_a_blocks_messages_out_of_every_queue_and_counts_them_by_peer_and_reason() -> None:
    made = shaper()
    for peer in "bc":
        put(made, item(peer, content=("d9", 0), tag="doomed"))
        put(made, item(peer, content=("d1", 0), tag="kept"))
    gone = made.purge(without(("d9", 0)), "deleted")
    assert (gone.messages, gone.bytes) == (2, 2 * FRAME)
    assert made.purged_bytes_by_reason == {("b", "deleted"): FRAME, ("c", "deleted"): FRAME}
    assert tags(drain(made)) == ["kept", "kept"]
    assert not list(made.pending())
