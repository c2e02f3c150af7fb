"""Virtual time among devices in one process: seeded traffic, in any order of real delivery."""

from __future__ import annotations

import heapq
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.clocks.windows import ABSENT, Windows

LOOKAHEAD_NS = 10


class Node:
    """A device that handles messages and, now and then, sends one; it logs what it handled when."""

    def __init__(self, name: str, names: list[str], seed: int) -> None:
        self.name, self.peers = name, [n for n in names if n != name]
        self.windows = Windows(name, names, LOOKAHEAD_NS)
        self.draw = random.Random(f"{seed}{name}")
        self.queue: list[tuple[int, str, int]] = [(self.draw.randrange(50), name, 0)]
        self.log: list[tuple[int, str, int]] = []
        self.announced = False
        self.seq = 0
        self.sent: Counter[str] = Counter()

    def next_ns(self) -> int | None:
        return self.queue[0][0] if self.queue else None

    def happen(self, horizon_ns: int, until_ns: int) -> list[tuple[str, tuple[int, str, int]]]:
        """Handle all that is before the horizon; returns what is sent."""
        out = []
        while self.queue and self.queue[0][0] < min(horizon_ns, until_ns):
            at, source, seq = heapq.heappop(self.queue)
            self.log.append((at, source, seq))
            for _ in range(self.draw.choice((0, 1, 2))):
                peer = self.draw.choice(self.peers)
                arrive = at + LOOKAHEAD_NS + self.draw.randrange(30)
                self.windows.on_sent(peer, arrive)
                self.sent[peer] += 1
                out.append((peer, (arrive, self.name, self.sent[peer])))
            if source == self.name:
                self.seq += 1
                heapq.heappush(self.queue, (at + 1 + self.draw.randrange(40), self.name, self.seq))
        if self.queue and self.queue[0][0] >= until_ns:
            self.queue = [e for e in self.queue if e[0] < until_ns]
        return out


def simulate(names: list[str], seed: int, delivery: int) -> dict[str, list[tuple[int, str, int]]]:
    """Run to time 400 with a real delivery order drawn from `delivery`. Each pair keeps no order at all."""
    nodes = {name: Node(name, names, seed) for name in names}
    order = random.Random(delivery)
    wire: list[tuple[str, str, object]] = []
    for _ in range(100_000):
        idle = [n for n in nodes.values() if not n.announced]
        if idle and (not wire or order.random() < 0.5):
            node = order.choice(idle)
            for peer, window in node.windows.announce(node.next_ns(), 0).items():
                wire.append((node.name, peer, window))
            node.announced = True
        elif wire:
            source, to, what = wire.pop(order.randrange(len(wire)))
            if isinstance(what, tuple):
                nodes[to].windows.on_received(source, what[2])
                assert what[0] >= (nodes[to].log[-1][0] if nodes[to].log else 0), "it came too late"
                heapq.heappush(nodes[to].queue, what)
            else:
                nodes[to].windows.on_window(source, what)  # type: ignore[arg-type]
        for node in nodes.values():
            if not node.announced:
                continue
            try:
                grant = node.windows.grant()
            except RuntimeError:
                return {n.name: n.log for n in nodes.values()}
            if grant is not None:
                node.announced = False
                wire += [(node.name, to, message) for to, message in node.happen(grant.horizon_ns, 400)]
    raise AssertionError("virtual time did not come to its end")


@given(st.integers(2, 5), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_virtual_times_do_not_depend_on_real_delivery(count: int, seed: int, first: int, second: int) -> None:
    names = [f"d{i}" for i in range(count)]
    log = simulate(names, seed, first)
    assert any(log.values())
    for handled in log.values():
        assert [at for at, *_ in handled] == sorted(at for at, *_ in handled)
    assert log == simulate(names, seed, second)


def pair() -> tuple[Windows, Windows]:
    return Windows("a", "ab", LOOKAHEAD_NS), Windows("b", "ab", LOOKAHEAD_NS)


def test_a_window_waits_for_the_messages_that_were_sent_before_it() -> None:
    a, b = pair()
    a.on_sent("b", 70)
    b.announce(90, 0)
    b.on_window("a", a.announce(200, 0)["b"])
    assert b.grant() is None
    assert b.missing() == ["a"]
    b.on_received("a", 1)
    grant = b.grant()
    assert grant is not None
    assert (grant.start_ns, grant.horizon_ns) == (70, 80)


def test_a_departed_device_is_neither_awaited_nor_counted_as_slowest() -> None:
    a, b = pair()
    b.announce(5, 7)
    b.on_window("a", a.announce(None, ABSENT, last=True)["b"])
    grant = b.grant()
    assert grant is not None
    assert (grant.slowest_round, grant.start_ns) == (7, 5)
    b.announce(6, 8)
    assert b.grant() is not None


def test_a_dead_device_is_not_awaited() -> None:
    _, b = pair()
    b.announce(5, 0)
    assert b.grant() is None
    b.remove_dead("a")
    assert b.grant() is not None


def test_a_run_without_events_is_an_error() -> None:
    a, b = pair()
    b.announce(None, 0)
    b.on_window("a", a.announce(None, 0)["b"])
    with pytest.raises(RuntimeError, match="cannot advance"):
        b.grant()


def test_no_lookahead_is_refused() -> None:
    with pytest.raises(ValueError, match="latency above 0"):
        Windows("a", "ab", 0)


def agreed(mine: int, theirs: int) -> Windows:
    """A window in which this device and one that has not joined have no event left."""
    windows, other = Windows("a", "ab", LOOKAHEAD_NS), Windows("b", "ab", LOOKAHEAD_NS)
    windows.announce(None, mine)
    windows.on_window("b", other.announce(None, theirs)["a"])
    return windows


def test_devices_that_have_yet_to_join_learn_that_nobody_is_present() -> None:
    grant = agreed(ABSENT, ABSENT).grant()
    assert grant is not None and grant.slowest_round is None


def test_a_present_device_without_events_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no device has an event left"):
        agreed(0, ABSENT).grant()


def test_a_process_has_ended_after_the_window_of_its_last_announcement() -> None:
    windows, other = Windows("a", "ab", LOOKAHEAD_NS), Windows("b", "ab", LOOKAHEAD_NS)
    windows.announce(5, 0)
    windows.on_window("b", other.announce(None, ABSENT, last=True)["a"])
    assert not windows.has_ended("b")
    windows.grant()
    assert windows.has_ended("b")
