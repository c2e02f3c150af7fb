"""What goes out where an allocator decides: a codec for each neighbour, and what a round has to give."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from coordinator_free.averaging.rate_allocation import Link
from coordinator_free.identifiers import BlockKey, Part
from peers.learning.neighbour_copies import Distances, NeighbourCopies
from peers.protocol.actions import Publish
from peers.protocol.send_allocation import Supply
from tests.peers.runtime.test_sender import MANIFEST, OWN, ROWS, Post, rebuilt
from transport.shaping.channel import LinkQuality
from transport.wire.messages import Manifest, Update

EARLY = Part(OWN, "early")


class AllocatingPost(Post):
    """`qualities`: of the links to these peers; the others are near."""

    def __init__(self, rows: int = ROWS, **radio: Any) -> None:
        super().__init__(rows, allocator="residual", **radio)
        self.copies = NeighbourCopies()
        self.box._copies = self.copies
        self.box._learner.groups = ("early",)
        self.qualities: dict[str, LinkQuality] = {}
        self.box._channel = self  # type: ignore[assignment]

    def link(self, *of: Any) -> Any:
        """The channel's, or as in Post the account of a peer."""
        if len(of) < 2:
            return super().link(*of)
        return self.qualities.get(of[2], LinkQuality(1 << 40, 1))

    def send(
        self, codec: str, to: str = "d1", version: int = 3, cause: str = "train", w: float = 0.5
    ) -> None:
        parts = ((EARLY, version, "train"),)
        action = Publish(to, 3, parts, MANIFEST, {EARLY: codec})
        self.box.publish(action, self.box.encode(action), 0)

    def supply(self) -> Supply:
        return cast(Supply, self.box.supply(Distances()))

    def theirs(self, peer: str) -> torch.Tensor:
        return self.copies._theirs[peer][EARLY]


def codecs_of(post: Post, peer: str) -> list[str]:
    return [m.codec for m in post.wire.messages(peer) if isinstance(m, Update)]


def test_each_neighbour_gets_its_codec() -> None:
    post = AllocatingPost()
    post.send("int4", to="d1")
    post.send("fp16", to="d2")
    post.drain()
    assert (codecs_of(post, "d1"), codecs_of(post, "d2")) == (["int4"], ["fp16"])
    mine = post.matrices[BlockKey("d0", 0), "early"]
    coarse, fine = (float((rebuilt(post, peer)[0] - mine).norm()) for peer in ("d1", "d2"))
    assert 0 < fine < coarse / 10 < 0.1 * float(mine.norm())


def test_a_matrix_is_encoded_once_in_a_codec_for_all_neighbours() -> None:
    post = AllocatingPost()
    for to, codec in (("d1", "int4"), ("d2", "int4"), ("d1", "int8")):
        post.send(codec, to=to)
    assert post.reads.total() == 2
    post.send("int4", to="d2", version=4)
    assert post.reads.total() == 3


def test_what_a_neighbour_decodes_is_what_it_is_taken_to_hold() -> None:
    post = AllocatingPost()
    for to, codec in (("d1", "int4"), ("d2", "int8")):
        post.send(codec, to=to)
    post.drain()
    for to in ("d1", "d2"):
        assert torch.equal(post.theirs(to), rebuilt(post, to)[0])


def test_what_one_send_lost_is_not_added_to_the_next() -> None:
    """Error feedback is for a part that always goes in one codec to everyone."""
    post, new = AllocatingPost(), AllocatingPost()
    post.send("int4", version=3)
    for each in (post, new):
        each.send("int4", version=4)
        each.drain()
    assert torch.equal(rebuilt(post, "d1")[-1], rebuilt(new, "d1")[-1])


def test_after_a_purge_nothing_of_the_block_is_kept() -> None:
    post = AllocatingPost()
    post.send("int4")
    post.box.purge(OWN, "leave")
    post.copies.drop(OWN)
    post.drain()
    assert not post.box._encoded and not post.box._errors and not codecs_of(post, "d1")
    assert not post.copies._theirs["d1"]


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("rows", [ROWS, 40_000], ids=["one frame", "many frames"])
def test_no_more_leaves_than_the_allocator_counted(rows: int, codec: str) -> None:
    post = AllocatingPost(rows, budget_bytes=1 << 40)
    counted = post.supply().sizes["early"][codec]
    post.send(codec)
    post.drain()
    assert post.box._accounts.link("d1").sent_by_cause["train"] <= counted


def test_a_link_carries_what_its_rate_allows_and_costs_what_it_takes() -> None:
    post = AllocatingPost(rate_Bps=1000, tau_max_s=2.0, beta_Bps=500)
    post.qualities = {"d1": LinkQuality(250, 1), "d2": LinkQuality(250, 1, outage=True)}
    assert post.supply().budget.links == {"d1": Link(500.0, 3.0), "d2": Link(0.0)}
    post.qualities = {}  # as fast as can be: then the device's own radio is the bound
    assert post.supply().budget.links["d1"].cap_bytes == 2000.0


def test_what_is_still_queued_is_not_spent_twice() -> None:
    post = AllocatingPost(budget_bytes=1 << 20)
    before = post.supply().budget
    post.send("int8", to="d1")
    queued = sum(i.wire_bytes for i in post.box._shaper.pending() if i.cause != "control")
    after = post.supply().budget
    assert before.cost - after.cost == queued > 0
    assert before.links["d1"].cap_bytes - after.links["d1"].cap_bytes == queued
    assert before.links["d2"] == after.links["d2"]
    post.qualities = {"d1": LinkQuality(1 << 40, 1, outage=True)}  # then it is not spent in this round at all
    assert post.supply().budget.cost == before.cost


def test_in_an_outage_data_waits_and_the_manifest_does_not() -> None:
    post = AllocatingPost()
    post.qualities = {"d1": LinkQuality(1 << 40, 1, outage=True)}
    post.new_round()
    assert post.box.outages == {"d1"}
    for to in ("d1", "d2"):
        post.send("int8", to=to)
        post.drain()
    assert post.wire.messages("d1") == [MANIFEST]
    assert [type(message) for message in post.wire.messages("d2")] == [Update, Manifest]
    post.qualities = {}
    post.new_round()
    post.drain()
    assert [type(message) for message in post.wire.messages("d1")] == [Manifest, Update]
    assert not post.box.outages


def test_the_budget_is_what_the_quota_has_left_for_data() -> None:
    post = AllocatingPost(budget_bytes=10_000)
    assert post.supply().budget.cost == post.box.quota.data_left() == 9500
    post.send("fp16")
    post.drain()
    assert post.supply().budget.cost == post.box.quota.data_left() < 9500


def test_without_an_allocator_there_is_nothing_to_give() -> None:
    assert Post().box.supply(Distances()) is None
