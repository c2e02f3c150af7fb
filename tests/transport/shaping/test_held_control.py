"""No round exceeds its budget: control that does not fit waits, and liveness keeps its own share."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator_free.membership.signed_records import Status
from peers.runtime.control_priority import departs, origin_of, replaced_by
from tests.support.membership_records import make
from transport.shaping.held_control import ORIGIN_BYTES
from transport.shaping.outgoing import Departure, Outgoing
from transport.shaping.round_budget import Priority, Quota
from transport.shaping.shaper import Shaper
from transport.wire.messages import Gossip, Suspect

BUDGET, SHARE = 20_000, 0.05
LIVENESS_BYTES = int(BUDGET * SHARE) // 2
FAST_Bps = 10**12


def shaper(shed: list[Outgoing] | None = None) -> Shaper:
    kept: list[Outgoing] = [] if shed is None else shed
    made = Shaper(FAST_Bps, 1 << 16, Quota(BUDGET, SHARE), on_shed=kept.append)
    made.quota.start_round()
    return made


def control(size: int, priority: Priority, peer: str = "b", key: str | None = None) -> Outgoing:
    return Outgoing(peer, "control", [b""], size, key=key, priority=priority)


def data(size: int) -> Outgoing:
    return Outgoing("b", "train", [b""], size)


def sizes(departures: list[Departure]) -> list[int]:
    return [departure.wire_bytes for departure in departures]


MESSAGES = st.one_of(
    st.tuples(st.just("control"), st.integers(1, 5000), st.sampled_from(Priority)),
    st.tuples(st.just("data"), st.integers(1, 15_000), st.none()),
    st.tuples(st.just("behind"), st.integers(1, 3000), st.just(Priority.MEMBERSHIP)),
    st.tuples(st.just("round"), st.none(), st.none()),
)


@settings(max_examples=400)
@given(st.lists(MESSAGES, max_size=80), st.integers(0, 1000))
def test_no_round_exceeds_its_budget_whatever_is_queued(operations, beta_Bps) -> None:
    made = shaper()
    made.set_link("b", rate_Bps=100_000_000, beta_Bps=beta_Bps)
    spent, now = Counter[int](), 0
    for what, size, priority in operations:
        match what:
            case "control":
                made.queue_control(control(size, priority))
            case "behind":
                made.queue_data(control(size, priority))
            case "data":
                made.queue_data(data(size))
            case "round":
                made.quota.start_round()
        while (due := made.next_ns(now)) is not None:
            now = due
            spent[made.quota.round or 0] += sum(sizes(made.pop(now)))
    assert made.violations == 0
    assert all(size <= BUDGET for size in spent.values())


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["memb", "table", "data"]), st.integers(1, 4000)), max_size=60))
def test_pings_within_their_share_leave_at_once_whatever_was_sent(traffic) -> None:
    made = shaper()
    for what, size in traffic:
        match what:
            case "memb":
                made.queue_control(control(size, Priority.MEMBERSHIP))
            case "table":
                made.queue_control(control(size, Priority.TABLES))
            case "data":
                made.queue_data(data(size))
    while (due := made.next_ns(0)) is not None and due == 0:
        made.pop(0)
    for _ in range(LIVENESS_BYTES // 100):
        made.queue_control(control(100, Priority.LIVENESS))
        assert sizes(made.pop(0)) == [100]


def test_departures_leave_while_tables_wait() -> None:
    made = shaper()
    made.queue_data(data(int(BUDGET * (1 - SHARE))))
    made.pop(0)
    made.queue_control(control(300, Priority.TABLES))
    made.queue_control(control(200, Priority.MEMBERSHIP))
    assert sizes(made.pop(0)) == [200]
    assert made.next_ns(0) is None
    made.quota.start_round()
    assert made.next_ns(0) == 0
    assert sizes(made.pop(0)) == [300]


def test_a_newer_ping_replaces_a_waiting_one_and_tables_wait_for_one_budget_at_most() -> None:
    shed: list[Outgoing] = []
    made = shaper(shed)
    made.queue_control(control(BUDGET, Priority.LIVENESS))
    made.pop(0)
    for key in ("Ping", "Ping", "Ack"):
        made.queue_control(control(100, Priority.LIVENESS, key=key))
    for _ in range(30):
        made.queue_control(control(1000, Priority.TABLES))
    made.pop(0)
    assert Counter(item.wire_bytes for item in shed) == {100: 1, 1000: 10}
    assert made.shed.bytes.total() == 10_100
    made.quota.start_round()
    assert sizes(made.pop(0))[:2] == [100, 100]


def test_after_the_last_round_goodbyes_leave_and_belong_to_no_round() -> None:
    made = shaper()
    made.queue_control(control(BUDGET, Priority.LIVENESS))
    made.queue_control(control(500, Priority.MEMBERSHIP))
    assert sizes(made.pop(0)) == [BUDGET]
    made.quota.end_rounds()
    assert sizes(made.pop(0)) == [500]
    assert (made.violations, made.spent) == (0, BUDGET + 500)


# -- one member that says much -----------------------------------------------------------------------------


def statement(size: int, origin: str, key: object = None, departs: bool = False) -> Outgoing:
    item = control(size, Priority.MEMBERSHIP)
    item.origin, item.key, item.departs = origin, key, departs
    return item


def queued(made: Shaper, *items: Outgoing) -> list[Outgoing]:
    """Queue messages in a round without bytes left; returns those that wait."""
    for item in items:
        made.queue_control(item)
    made.pop(0)
    return list(made.pending())


def full(shed: list[Outgoing] | None = None) -> Shaper:
    made = shaper(shed)
    made.quota.spend(BUDGET, data=True)
    return made


def test_the_newest_record_of_an_incarnation_replaces_those_that_wait() -> None:
    shed: list[Outgoing] = []
    waiting = queued(full(shed), *(statement(300 + n, "d2", key=(("d2", 0),)) for n in range(1000)))
    assert [item.wire_bytes for item in waiting] == [1299] and len(shed) == 999


def test_what_waits_of_one_device_is_bounded_in_bytes_and_others_are_kept() -> None:
    shed: list[Outgoing] = []
    many = [statement(300, "d2", key=(("d2", n),)) for n in range(1000)]
    waiting = queued(full(shed), statement(301, "d1"), *many, statement(302, "d3"))
    of = Counter[str]()
    for item in waiting:
        of[item.origin] += item.wire_bytes
    assert of["d2"] <= ORIGIN_BYTES and (of["d1"], of["d3"]) == (301, 302)
    assert len(waiting) + len(shed) == 1002 and {item.origin for item in shed} == {"d2"}


def test_a_departure_goes_before_other_messages_that_wait_and_is_never_shed() -> None:
    made = full()
    many = [statement(300, "d2", key=(("d2", n),)) for n in range(1000)]
    queued(made, *many, statement(400, "d2", key=(("d2", 7777),), departs=True), *many)
    made.quota.start_round()
    assert sizes(made.pop(1))[0] == 400


def test_a_departure_does_not_wait_behind_other_messages_if_it_fits() -> None:
    made = shaper()
    large = [control(9000, Priority.MEMBERSHIP) for _ in range(3)]
    for item in [*large, statement(400, "d1", departs=True)]:
        made.queue_control(item)
    assert sizes(made.pop(0)) == [9000, 9000, 400]


def test_control_messages_name_their_key_their_origin_and_departures() -> None:
    live, left = make("d1").to_dict(), make("d1", status=Status.LEFT).to_dict()
    news, leave = Gossip([live], False, 0), Gossip([left], False, 0)
    assert replaced_by(news) == replaced_by(leave) == (("d1", 0),)
    assert replaced_by(Gossip([live], True, 0)) is None
    assert replaced_by(Gossip([live] * 9, False, 0)) is None
    assert [departs(message) for message in (news, leave)] == [False, True]
    assert origin_of(leave) == "d1" and origin_of(Suspect("d1", 0, 1, "d2")) == "d2"
    assert replaced_by(Suspect("d1", 0, 1, "d2")) == replaced_by(Suspect("d1", 1, 9, "d2")) == ("d1", "d2")
