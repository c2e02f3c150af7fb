"""Network means: equal on every device, for any order of messages and any crash."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator_free.correction.network_mean import Mean, NetworkMean, Report
from coordinator_free.identifiers import BlockKey

LENGTH = 3
KEYS = [BlockKey(f"d{i}", 0) for i in range(5)]
PEERS = [key.device for key in KEYS]
RING = {p: [PEERS[i - 1], PEERS[(i + 1) % 5]] for i, p in enumerate(PEERS)}


def values(i: int, epoch: int = 0) -> np.ndarray:
    return np.random.default_rng([i, epoch]).standard_normal(LENGTH) * 10.0 ** (3 * i - 6)


def report(i: int, epoch: int = 0) -> Report:
    return Report(KEYS[i], epoch, values(i, epoch).astype(np.float32))


def fresh(**options) -> NetworkMean:
    return NetworkMean(LENGTH, 8, **options)


def mean_of(node: NetworkMean, keys: Iterable[BlockKey]) -> Mean:
    """The mean, which must be there."""
    mean = node.mean(keys)
    assert mean is not None
    return mean


class Network:
    """Devices on a ring whose messages are delivered in a random order, some twice."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.nodes = {peer: fresh() for peer in PEERS}
        self.flying: list[tuple[str, str, Report]] = []

    def measure(self, i: int, epoch: int = 0) -> None:
        self.nodes[PEERS[i]].add_own(KEYS[i], epoch, values(i, epoch))
        self.tell(PEERS[i])

    def tell(self, source: str) -> None:
        for to in RING[source]:
            if source in self.nodes and to in self.nodes:
                self.flying += [(source, to, r) for r in self.nodes[source].unsent_reports(to)]

    def crash(self, i: int) -> None:
        del self.nodes[PEERS[i]]

    def settle(self) -> None:
        while self.flying:
            source, to, sent = self.flying.pop(self.rng.randrange(len(self.flying)))
            if self.rng.random() < 0.2:
                self.flying.append((source, to, sent))
            if to in self.nodes and self.nodes[to].on_report(source, sent):
                self.tell(to)


@given(st.integers(0, 1 << 30))
def test_every_device_gets_the_same_mean_to_the_last_bit(seed):
    network = Network(seed)
    for i in network.rng.sample(range(5), 5):
        network.measure(i)
    network.settle()
    means = [mean_of(node, KEYS) for node in network.nodes.values()]
    assert len({m.values.tobytes() for m in means}) == len({m.digest for m in means}) == 1
    expected = np.mean([values(i).astype(np.float32) for i in range(5)], axis=0, dtype=np.float64)
    np.testing.assert_allclose(means[0].values, expected)
    assert means[0].origins == tuple(KEYS)


@given(st.integers(0, 1 << 30))
def test_a_later_epoch_wins_in_any_order_of_arrival(seed):
    network = Network(seed)
    for i in range(5):
        network.measure(i, 0)
        network.measure(i, 7 if i == 2 else 1)
    network.settle()
    means = [mean_of(node, KEYS) for node in network.nodes.values()]
    assert len({m.values.tobytes() for m in means}) == 1
    assert means[0].oldest == 1
    assert all(node.missing(KEYS, 1) == [] for node in network.nodes.values())
    assert all(node.missing(KEYS, 2) == [k for k in KEYS if k != KEYS[2]] for node in network.nodes.values())


@given(st.integers(0, 1 << 30), st.integers(0, 4))
def test_a_crash_in_the_middle_costs_nobody_elses_vector(seed, dead):
    network = Network(seed)
    for i in range(5):
        network.measure(i)
    for _ in range(4):  # some have heard it, some have not
        source, to, sent = network.flying.pop()
        if network.nodes[to].on_report(source, sent):
            network.tell(to)
    network.crash(dead)
    for node in network.nodes.values():
        node.forget_origin(KEYS[dead])
    for peer in list(network.nodes):
        network.tell(peer)
    network.settle()
    means = [mean_of(node, KEYS) for node in network.nodes.values()]
    assert len({m.values.tobytes() for m in means}) == 1
    assert means[0].origins == tuple(key for i, key in enumerate(KEYS) if i != dead)


def test_later_reports_of_a_dropped_origin_are_ignored():
    node = fresh()
    assert node.on_report("d1", report(1))
    node.forget_origin(KEYS[1])
    assert not node.on_report("d2", report(1, epoch=9))
    assert node.mean(KEYS) is None and node.unsent_reports("d3") == []
    assert node.refused == 0


def test_an_origin_that_lives_may_come_back_and_others_may_not():
    node = fresh()
    for i in (1, 2):
        node.on_report(f"d{i}", report(i))
    node.keep_only((), living={KEYS[1]})
    assert node.mean(KEYS) is None
    assert node.on_report("d1", report(1, epoch=9)) and not node.on_report("d2", report(2, epoch=9))


def test_a_new_incarnation_of_a_dropped_device_counts():
    node = fresh()
    node.on_report("d1", report(1))
    node.forget_origin(KEYS[1])
    again = replace(report(1), origin=BlockKey("d1", 1))
    assert node.on_report("d1", again)
    assert mean_of(node, [BlockKey("d1", 1)]).origins == (BlockKey("d1", 1),)


def test_only_members_are_counted():
    node = fresh()
    for i in range(3):
        node.on_report("d1", report(i))
    assert mean_of(node, KEYS[:2]).origins == (KEYS[0], KEYS[1])
    assert node.mean([]) is None


def test_a_report_is_sent_once_and_not_to_its_origin_or_sender():
    node = fresh()
    node.add_own(KEYS[0], 0, values(0))
    node.on_report("d1", report(2))
    assert [r.origin for r in node.unsent_reports("d1")] == [KEYS[0]]
    assert [r.origin for r in node.unsent_reports("d2")] == [KEYS[0]]
    assert [r.origin for r in node.unsent_reports("d3")] == [KEYS[0], KEYS[2]]
    assert node.unsent_reports("d3") == []
    node.resend_all("d3")
    assert len(node.unsent_reports("d3")) == 2


def test_a_known_report_is_not_sent_back_to_its_sender():
    node = fresh()
    node.on_report("d1", report(2))
    assert not node.on_report("d3", report(2))
    assert node.unsent_reports("d3") == []


def test_the_origin_sums_the_values_that_it_sent():
    node, other = fresh(), fresh()
    sent = node.add_own(KEYS[0], 0, [1 / 3, 2 / 3, 1e-3])
    other.on_report("d0", sent)
    assert mean_of(node, KEYS).values.tobytes() == mean_of(other, KEYS).values.tobytes()
    assert sent.values.dtype == np.float32


@pytest.mark.parametrize(
    "bad",
    [
        replace(report(1), values=np.zeros(LENGTH + 1, np.float32)),
        replace(report(1), values=np.zeros((1, LENGTH), np.float32)),
        replace(report(1), values=np.zeros(LENGTH)),  # type: ignore[arg-type]
        replace(report(1), values=np.array([0, np.nan, 0], np.float32)),
        replace(report(1), values=np.array([0, np.inf, 0], np.float32)),
        replace(report(1), epoch=-1),
    ],
)
def test_an_unsound_report_is_refused_and_counted(bad):
    node = fresh()
    assert not node.on_report("d1", bad)
    assert node.refused == 1 and node.mean(KEYS) is None


def test_the_number_of_origins_is_bounded():
    node = NetworkMean(LENGTH, 2)
    assert node.on_report("d1", report(1)) and node.on_report("d1", report(2))
    assert not node.on_report("d1", report(3))
    assert node.on_report("d1", report(2, epoch=1))
    assert node.refused == 1
    assert len(node._known_by["d1"]) == 2


def test_an_invalid_own_vector_is_an_error():
    with pytest.raises(ValueError, match="expected 3 finite"):
        fresh().add_own(KEYS[0], 0, [1.0, 2.0])
    with pytest.raises(ValueError, match="expected 3 finite"):
        fresh().add_own(KEYS[0], 0, [1.0, 2.0, 1e39])


def test_a_report_that_its_origin_did_not_sign_is_refused():
    def sign(data: bytes) -> bytes:
        return b"d0" + data[:4]

    node = fresh(verify=lambda r: r.signature == sign(r.signed_data()))
    signed = fresh().add_own(KEYS[0], 0, values(0), sign)
    assert not node.on_report("d1", replace(signed, signature=b"forged"))
    assert node.on_report("d1", signed)
    assert node.refused == 1


def test_two_reports_of_one_epoch_resolve_alike_everywhere():
    one, other = report(1), replace(report(1), values=np.ones(LENGTH, np.float32))
    a, b = fresh(), fresh()
    for first, second, node in ((one, other, a), (other, one, b)):
        node.on_report("d1", first)
        node.on_report("d1", second)
    assert mean_of(a, KEYS).digest == mean_of(b, KEYS).digest
