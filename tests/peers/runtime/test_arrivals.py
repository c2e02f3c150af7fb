"""The bursts of data between two ends of a round."""

from __future__ import annotations

from peers.runtime.arrivals import Arrivals


def test_a_burst_spans_all_messages_of_a_device() -> None:
    arrivals = Arrivals()
    for depart_ns, arrive_ns in ((20, 40), (10, 50), (30, 60)):
        arrivals.add("d1", depart_ns, arrive_ns, 100)
    arrivals.add("d0", 5, 6, 1)
    found = arrivals.take(float)
    assert list(found) == ["d0", "d1"]
    assert found["d1"] == {"depart_s": [10, 30], "arrive_s": [40, 60], "bytes": 300, "messages": 3}
    assert arrivals.take(float) == {}


def test_a_departure_is_not_later_than_the_arrival() -> None:
    arrivals = Arrivals()
    arrivals.add("d1", 99, 40, 100)
    assert arrivals.take(float)["d1"]["depart_s"] == [40, 40]
