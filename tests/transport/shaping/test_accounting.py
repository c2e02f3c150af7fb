"""Accounts of a link: each byte is counted once; latencies are exact within a bucket."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.shaping.accounting import (
    CAUSES,
    MAX_PEERS,
    OTHERS,
    PER_DECADE,
    Accounts,
    LatencyHistogram,
    LinkAccount,
    open_bytes,
)

LATENCIES = st.lists(st.integers(0, 10**13), min_size=1, max_size=50)


def filled(latencies: list[int]) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for latency in latencies:
        histogram.add(latency)
    return histogram


def test_the_form_of_the_metrics() -> None:
    account = LinkAccount()
    account.sent("train", 1000, 900, 80)
    account.sent("control", 50, 0, 48)
    account.received(70, 2_000_000)
    account.dropped("stale", 30)
    found = account.to_dict()
    assert (found["sent_messages"], found["sent_bytes"]) == (2, 1050)
    assert (found["payload_bytes"], found["header_bytes"], found["frame_bytes"]) == (900, 128, 22)
    assert found["bytes_by_cause"] == {"train": 1000, "correction": 0, "transfer": 0, "control": 50}
    assert (found["received_messages"], found["received_bytes"]) == (1, 70)
    assert (found["dropped_bytes"], found["dropped_messages"]) == ({"stale": 30}, {"stale": 1})
    assert json.loads(json.dumps(found)) == found


def test_an_unknown_split_is_not_made_up() -> None:
    account = LinkAccount()
    account.sent("train", 1000, 900, 80)
    account.sent("train", 1000, 900)
    found = account.to_dict()
    assert (found["header_bytes"], found["frame_bytes"], found["payload_bytes"]) == (None, None, 1800)


@given(
    st.lists(
        st.tuples(st.sampled_from(CAUSES), st.integers(1, 10**6), st.sampled_from(["taken", "late", "loss"]))
    )
)
def test_sent_is_received_plus_dropped(messages: list[tuple[str, int, str]]) -> None:
    sender, receiver = LinkAccount(), LinkAccount()
    for cause, size, fate in messages:
        sender.sent(cause, size, 0, size)
        if fate == "taken":
            receiver.received(size, None)
        else:
            receiver.dropped(fate, size)
    out, into = sender.to_dict(), receiver.to_dict()
    assert open_bytes(out, into) == 0
    assert sum(out["bytes_by_cause"].values()) == out["sent_bytes"]
    assert out["sent_messages"] == into["received_messages"] + sum(into["dropped_messages"].values())


def test_open_bytes_of_a_crashed_end_are_reported() -> None:
    sender, receiver = LinkAccount(), LinkAccount()
    sender.sent("train", 100, 90, 8)
    sender.abandoned("purged", 500)  # never on the wire
    assert open_bytes(sender.to_dict(), receiver.to_dict()) == 100


@given(LATENCIES, st.sampled_from([50, 95, 99]))
def test_quantiles_are_within_a_bucket(latencies: list[int], percent: int) -> None:
    exact = sorted(latencies)[max(1, -(-percent * len(latencies) // 100)) - 1]
    found = filled(latencies).quantile_ns(percent)
    assert min(latencies) <= found <= max(latencies)
    if exact <= 1000:
        assert exact <= found <= 1000
    elif exact <= 10**12:
        assert exact <= found <= exact * 1.075 + 1


@given(LATENCIES, LATENCIES)
def test_merged_histograms_equal_one_histogram(a: list[int], b: list[int]) -> None:
    merged = filled(a)
    merged.merge(filled(b))
    assert merged.quantiles_s() == filled(a + b).quantiles_s()
    assert len(merged) == len(a) + len(b)


def test_only_the_final_record_has_the_histogram() -> None:
    accounts = Accounts()
    for latency_ns in (900, 1000, 10**6, 10**6):
        accounts.link("d1").received(10, latency_ns)
    assert "latency_counts" not in accounts.to_dict()["d1"]
    counts = accounts.to_dict(histograms=True)["d1"]["latency_counts"]
    assert counts == {"0": 2, str(3 * PER_DECADE): 2}  # up to 1 us; up to 1 ms
    assert json.loads(json.dumps(counts)) == counts


def test_quantiles_follow_new_latencies() -> None:
    histogram = filled([1000])
    assert histogram.quantiles_s() == {"p50": 1e-6, "p95": 1e-6, "p99": 1e-6}
    histogram.add(10**9)
    assert histogram.quantiles_s() == {"p50": 1e-6, "p95": 1.0, "p99": 1.0}


def test_no_latencies_no_quantiles() -> None:
    assert LinkAccount().to_dict()["latency_s"] is None
    with pytest.raises(ValueError, match="no latencies"):
        LatencyHistogram().quantile_ns(50)


def test_an_arrival_before_its_departure_is_in_no_quantile() -> None:
    histogram = filled([-5, 10_000])
    assert (histogram.negative, histogram.quantile_ns(50)) == (1, 10_000)


def test_invented_names_do_not_add_accounts_without_end() -> None:
    accounts = Accounts()
    for i in range(MAX_PEERS + 100):
        accounts.link(f"invented{i}").dropped("malformed", 10)
        accounts.link("d1").received(1, None)
    accounts.link("joiner").sent("train", 7, 5)
    books = accounts.to_dict()
    assert len(books) == MAX_PEERS + 1
    assert books["d1"]["received_bytes"] == MAX_PEERS + 100
    assert books["joiner"]["sent_bytes"] == 7
    assert sum(sum(b["dropped_bytes"].values()) for b in books.values()) == 10 * (MAX_PEERS + 100)
    assert OTHERS in books


def test_an_unknown_source_without_an_account_counts_under_others() -> None:
    accounts = Accounts()
    accounts.link("d1").sent("control", 3, 0)
    for name, known in (("d1", False), ("d2", True), ("x", False), ("y", False)):
        accounts.source(name, known).dropped("stranger", 1)
    assert {name: book["dropped_bytes"] for name, book in accounts.to_dict().items()} == {
        OTHERS: {"stranger": 2},
        "d1": {"stranger": 1},
        "d2": {"stranger": 1},
    }


def test_an_account_that_is_added_to_another_keeps_every_count() -> None:
    first, second = LinkAccount(), LinkAccount()
    for account in (first, second):
        account.sent("train", 1000, 900, 80)
        account.received(70, 2_000_000)
        account.dropped("stale", 30)
        account.lost(5)
        account.abandoned("gone", 6)
    first.add(second)
    found, one = first.to_dict(), second.to_dict()
    numbers = [key for key, value in one.items() if isinstance(value, int)]
    assert {key: found[key] for key in numbers} == {key: 2 * one[key] for key in numbers}
    assert found["dropped_bytes"] == {"stale": 60} and found["abandoned_bytes"] == {"gone": 12}
    assert len(first.latency) == 2
