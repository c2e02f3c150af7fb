"""Sending with an allocator: a codec for each neighbour, and what a round can still carry."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from coordinator_free.averaging.copy_distances import Distances
from coordinator_free.averaging.rate_allocation import Link
from coordinator_free.identifiers import BlockKey, Part
from peers.learning.neighbour_copies import NeighbourCopies
from peers.protocol.actions import Publish
from peers.protocol.send_allocation import Supply
from tests.support.sending import MANIFEST, OWN, ROWS, SendingDevice, headers_of, received_matrices
from transport.shaping.channel import LinkQuality
from transport.wire.messages import Manifest, Updates

EARLY = Part(OWN, "early")


class AllocatingDevice(SendingDevice):
    """`qualities`: of the links to these peers; the others are near."""

    def __init__(self, rows: int = ROWS, **radio: Any) -> None:
        self.copies = NeighbourCopies()
        super().__init__(rows, self.copies, allocator="residual", **radio)
        self.qualities: dict[str, LinkQuality] = {}
        self.sender._channel = self  # type: ignore[assignment]

    def link(self, *of: Any) -> Any:
        """The quality of a link, or with one argument the account of a peer."""
        if len(of) < 2:
            return super().link(*of)
        return self.qualities.get(of[2], LinkQuality(1 << 40, 1))

    def send(
        self, codec: str, to: str = "d1", version: int = 3, cause: str = "train", w: float = 0.5
    ) -> None:
        parts = ((EARLY, version, "train"),)
        action = Publish(to, 3, parts, MANIFEST, {EARLY: codec})
        self.perform(action)

    def supply(self) -> Supply:
        return cast(Supply, self.sender.supply(Distances()))

    def theirs(self, peer: str) -> torch.Tensor:
        return self.copies._theirs[peer][EARLY]


def codecs_of(device: SendingDevice, peer: str) -> list[str]:
    return [header.codec for header in headers_of(device.links.messages(peer))]


def test_each_neighbour_gets_its_codec() -> None:
    device = AllocatingDevice()
    device.send("int4", to="d1")
    device.send("fp16", to="d2")
    device.drain()
    assert (codecs_of(device, "d1"), codecs_of(device, "d2")) == (["int4"], ["fp16"])
    mine = device.matrices[BlockKey("d0", 0), "early"]
    coarse, fine = (float((received_matrices(device, peer)[0] - mine).norm()) for peer in ("d1", "d2"))
    assert 0 < fine < coarse / 10 < 0.1 * float(mine.norm())


def test_a_matrix_is_encoded_once_in_a_codec_for_all_neighbours() -> None:
    device = AllocatingDevice()
    for to, codec in (("d1", "int4"), ("d2", "int4"), ("d1", "int8")):
        device.send(codec, to=to)
    assert device.reads.total() == 2
    device.send("int4", to="d2", version=4)
    assert device.reads.total() == 3


def test_the_kept_copy_equals_the_matrix_that_the_neighbour_decodes() -> None:
    device = AllocatingDevice()
    for to, codec in (("d1", "int4"), ("d2", "int8")):
        device.send(codec, to=to)
    device.drain()
    for to in ("d1", "d2"):
        assert torch.equal(device.theirs(to), received_matrices(device, to)[0])


def test_with_an_allocator_there_is_no_error_feedback() -> None:
    """Error feedback is only for a part that all neighbours get in one codec."""
    device, new = AllocatingDevice(), AllocatingDevice()
    device.send("int4", version=3)
    for each in (device, new):
        each.send("int4", version=4)
        each.drain()
    assert torch.equal(received_matrices(device, "d1")[-1], received_matrices(new, "d1")[-1])


def test_a_purge_removes_payloads_errors_and_copies_of_a_block() -> None:
    device = AllocatingDevice()
    device.send("int4")
    device.purge(OWN)
    device.copies.drop_block(OWN)
    device.drain()
    assert not device.encoder._cache and not device.encoder._errors and not codecs_of(device, "d1")
    assert not device.copies._theirs["d1"]


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("rows", [ROWS, 40_000], ids=["one frame", "many frames"])
def test_a_part_takes_at_most_the_bytes_that_the_allocator_counts(rows: int, codec: str) -> None:
    device = AllocatingDevice(rows, budget_bytes=1 << 40)
    counted = device.supply().sizes["early"][codec]
    device.send(codec)
    device.drain()
    assert device.sender._accounts.link("d1").sent_by_cause["train"] <= counted


def test_capacity_and_cost_of_a_link_follow_from_its_rate() -> None:
    device = AllocatingDevice(rate_Bps=1000, tau_max_s=2.0, beta_Bps=500)
    device.qualities = {"d1": LinkQuality(250, 1), "d2": LinkQuality(250, 1, outage=True)}
    assert device.supply().budget.links == {"d1": Link(500.0, 3.0), "d2": Link(0.0)}
    device.qualities = {}  # fast links: the device's own radio is the limit
    assert device.supply().budget.links["d1"].cap_bytes == 2000.0


def test_queued_bytes_are_not_spent_twice() -> None:
    device = AllocatingDevice(budget_bytes=1 << 20)
    before = device.supply().budget
    device.send("int8", to="d1")
    queued = sum(i.wire_bytes for i in device.sender._shaper.pending() if i.cause != "control")
    after = device.supply().budget
    assert before.cost - after.cost == queued > 0
    assert before.links["d1"].cap_bytes - after.links["d1"].cap_bytes == queued
    assert before.links["d2"] == after.links["d2"]
    device.qualities = {"d1": LinkQuality(1 << 40, 1, outage=True)}  # an outage spends nothing
    assert device.supply().budget.cost == before.cost


def test_in_an_outage_data_waits_and_the_manifest_does_not() -> None:
    device = AllocatingDevice()
    device.qualities = {"d1": LinkQuality(1 << 40, 1, outage=True)}
    device.new_round()
    assert device.sender.outages == {"d1"}
    for to in ("d1", "d2"):
        device.send("int8", to=to)
        device.drain()
    assert device.links.messages("d1") == [MANIFEST]
    assert [type(message) for message in device.links.messages("d2")] == [Updates, Manifest]
    device.qualities = {}
    device.new_round()
    device.drain()
    assert [type(message) for message in device.links.messages("d1")] == [Manifest, Updates]
    assert not device.sender.outages


def test_the_budget_is_what_the_quota_has_left_for_data() -> None:
    device = AllocatingDevice(budget_bytes=10_000)
    assert device.supply().budget.cost == device.sender.quota.data_left() == 9500
    device.send("fp16")
    device.drain()
    assert device.supply().budget.cost == device.sender.quota.data_left() < 9500


def test_without_an_allocator_there_is_no_supply() -> None:
    assert SendingDevice().sender.supply(Distances()) is None
