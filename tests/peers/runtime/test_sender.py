"""What goes out: every byte queued is sent or abandoned for a reason, and nothing purged leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from coordinator_free.identifiers import BlockKey, Part
from peers.config import DeviceConfig
from peers.learning.learner import Learner
from peers.protocol.actions import Farewell, Publish
from peers.runtime.main import DeviceSpec
from peers.runtime.sender import Outbox
from transport.links.interface import Links
from transport.shaping.accounting import Accounts, LinkAccount
from transport.shaping.channel import FixedChannel, LinkQuality
from transport.wire.fragments import Reassembler
from transport.wire.messages import Buffer, Bye, Credit, Manifest, Message, Update
from transport.wire.packing import unpack, wire_bytes
from transport.wire.tensor_codec import decode

ROWS, RANK = 128, 4
OWN, THEIRS = BlockKey("d0", 0), BlockKey("d1", 0)
SECOND = 1_000_000_000
MANIFEST = Manifest(3, "train", b"viewview", [])


class Wire:
    """Links that keep what they were given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, list[Buffer]]] = []
        self.broken = False

    def connect(self, peer: str, address: str) -> None: ...

    def disconnect(self, peer: str) -> None: ...

    def send(self, peer: str, frames: Sequence[Buffer]) -> bool:
        self.sent.append((peer, list(frames)))
        return not self.broken

    def messages(self, peer: str) -> list[Message]:
        return [unpack(frames)[1] for to, frames in self.sent if to == peer]

    def wire_bytes(self, peer: str) -> int:
        return sum(wire_bytes(frames) for to, frames in self.sent if to == peer)


class Post:
    """d0's outbox with links to d1 and d2."""

    def __init__(self, rows: int = ROWS, **radio: Any) -> None:
        self.matrices: dict[tuple[BlockKey, str], Tensor] = {}
        self.reads: Counter[tuple[BlockKey, str]] = Counter()
        layout = SimpleNamespace(rows=lambda group: rows, rank=lambda group: RANK)
        learner = cast(Learner, SimpleNamespace(layout=layout, read=self._read))
        self.accounts, self.wire, self.now = Accounts(), Wire(), 0
        config = DeviceConfig.model_validate({"radio": radio})
        near = FixedChannel(LinkQuality(1 << 40, 1))
        spec = DeviceSpec("d0", config, "sim://d0", "sim://d0", (), "", channel=near)
        self.box = Outbox(spec, learner, cast(Links, self.wire), self.accounts, 0)
        for peer in ("d1", "d2"):
            self.box.connect(peer, f"sim://{peer}", 0)
        self.new_round()
        self._shape = rows, RANK

    def _read(self, key: BlockKey, group: str) -> Tensor:
        self.reads[key, group] += 1
        made = torch.randn(self._shape, generator=torch.Generator().manual_seed(len(self.matrices)))
        return self.matrices.setdefault((key, group), made)

    def new_round(self) -> None:
        self.box.start_round(3, ("d0", "d1", "d2"), self.now)

    def publish(self, *blocks: BlockKey, to: str = "d1", version: int = 3, cause: str = "train") -> None:
        parts = tuple((Part(block, "early"), version, cause) for block in blocks)
        action = Publish(to, 3, parts, MANIFEST)
        self.box.publish(action, self.box.encode(action), 0)

    def drain(self) -> None:
        """Send all that may leave in this round."""
        while (due := self.box.next_ns(self.now)) is not None:
            self.now = due
            self.box.send_due(due)

    def link(self, peer: str = "d1") -> LinkAccount:
        return self.accounts.link(peer)


def test_a_codec_that_differs_for_a_part_is_sent_and_leaves_nothing_for_later() -> None:
    post = Post(budget_bytes=1 << 20)
    part = Part(OWN, "early")
    coarse = Publish("d1", 3, ((part, 3, "train"),), MANIFEST, {part: "int8"})
    post.box.publish(coarse, post.box.encode(coarse), 0)
    assert post.box.encoded(coarse) is not None
    assert post.box.encoded(Publish("d1", 3, coarse.parts, MANIFEST)) is None  # in fp16 it is not there yet
    post.drain()
    post.publish(OWN, version=4)
    post.drain()
    codecs = [message.codec for message in post.wire.messages("d1") if isinstance(message, Update)]
    assert codecs == ["int8", "fp16"]
    assert not post.box._errors  # what int8 has lost is in the next version


def blocks_of(messages: list[Message]) -> list[str]:
    return [message.block for message in messages if isinstance(message, Update)]


def rebuilt(post: Post, peer: str) -> list[Tensor]:
    """The matrices that a receiver makes of what was sent."""
    parts, found = Reassembler(1 << 30), []
    for to, frames in post.wire.sent:
        message = unpack(frames)[1]
        if to == peer and isinstance(message, Update):
            payload = parts.add_fragment("d0", message, frames[1])
            if payload is not None:
                found.append(decode(payload, message.codec, message.rows, message.rank))
    return found


# -- sending ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [ROWS, 40_000], ids=["one frame", "many frames"])
def test_a_receiver_gets_the_matrix(rows: int) -> None:
    post = Post(rows, codec="fp32")
    post.publish(OWN)
    post.drain()
    (values,) = rebuilt(post, "d1")
    assert torch.equal(values, post.matrices[BlockKey("d0", 0), "early"])


def test_the_manifest_comes_after_the_data() -> None:
    post = Post()
    post.publish(OWN, THEIRS)
    post.drain()
    messages = post.wire.messages("d1")
    assert blocks_of(messages) == ["d0", "d1"] and messages[-1] == MANIFEST


def test_control_does_not_wait_behind_data() -> None:
    post = Post()
    post.publish(OWN)
    post.box.tell("d1", 0, Credit(3))
    post.drain()
    assert post.wire.messages("d1")[0] == Credit(3)


def test_what_was_sent_is_counted_by_cause_to_the_byte() -> None:
    post = Post()
    post.publish(OWN)
    post.publish(THEIRS, cause="transfer")
    post.box.tell("d1", 0, Credit(3))
    post.drain()
    link = post.link()
    assert link.sent_bytes == post.wire.wire_bytes("d1") == link.sent_by_cause.total()
    assert link.sent_messages == len(post.wire.sent) == 5
    assert link.payload_bytes == 2 * 2 * ROWS * RANK  # two matrices in fp16
    assert min(link.sent_by_cause["train"], link.sent_by_cause["transfer"]) > 2 * ROWS * RANK
    assert link.sent_by_cause["control"] > 0


@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize("rows", [ROWS, 40_000], ids=["one frame", "many frames"])
def test_a_part_costs_no_more_than_was_planned(rows: int, codec: str) -> None:
    post = Post(rows, codec=codec, budget_bytes=1 << 40)
    post.publish(OWN)
    post.drain()
    assert post.link().sent_by_cause["train"] <= post.box.part_bytes("early")


def test_a_matrix_is_encoded_once_for_all_neighbours_and_again_when_it_has_changed() -> None:
    post = Post()
    post.publish(OWN, to="d1")
    post.publish(OWN, to="d2")
    assert post.reads.total() == 1
    post.publish(OWN, to="d1", version=4)
    assert post.reads.total() == 2


def test_data_beyond_the_quota_waits_for_the_next_round() -> None:
    post = Post(budget_bytes=2000)
    assert post.box.part_bytes("early") <= post.box.data_budget() < 2 * post.box.part_bytes("early")
    post.publish(OWN, THEIRS)
    post.drain()
    assert blocks_of(post.wire.messages("d1")) == ["d0"]
    post.new_round()
    post.drain()
    assert blocks_of(post.wire.messages("d1")) == ["d0", "d1"]
    assert post.box.quota.violations == 0


# -- taking back -----------------------------------------------------------------------------------------


def test_after_a_purge_nothing_of_the_block_leaves_and_its_bytes_are_accounted_for() -> None:
    post = Post(40_000)
    post.publish(OWN, THEIRS)
    post.box.send_due(post.now)  # a frame or two of d0's
    before = len(post.wire.sent)
    assert before
    post.box.purge(OWN, "leave")
    post.drain()
    assert set(blocks_of(post.wire.messages("d1"))[before:]) == {"d1"}
    other = Post(40_000)
    other.publish(OWN, THEIRS)
    other.drain()
    assert post.link().sent_bytes + post.link().abandoned_bytes["leave"] == other.link().sent_bytes


def test_after_a_purge_a_block_is_encoded_anew() -> None:
    post = Post()
    post.publish(OWN)
    post.box.purge(OWN, "leave")
    post.publish(OWN)
    assert post.reads[BlockKey("d0", 0), "early"] == 2


def test_after_a_refit_the_block_is_encoded_anew_although_its_version_is_the_same() -> None:
    post = Post()
    post.publish(OWN, version=3)
    post.box.refitted(OWN)
    post.publish(OWN, version=3, to="d2")
    assert post.reads.total() == 2


def test_after_a_purge_no_rounding_error_of_the_block_is_carried_over() -> None:
    purged, new = Post(codec="int4"), Post(codec="int4")
    purged.publish(OWN, version=3)
    purged.box.purge(OWN, "leave")
    for post in (purged, new):
        post.publish(OWN, version=4)
        post.drain()
    assert torch.equal(rebuilt(purged, "d1")[-1], rebuilt(new, "d1")[-1])


def test_a_newer_version_replaces_what_is_queued_of_an_older_one() -> None:
    post = Post()
    post.publish(OWN, version=3)
    post.publish(OWN, version=4)
    post.drain()
    versions = [m.version for m in post.wire.messages("d1") if isinstance(m, Update)]
    assert versions == [4]
    assert post.link().abandoned_bytes["superseded"] == post.link().sent_by_cause["train"]


def test_what_is_queued_for_a_link_that_is_given_up_is_not_sent() -> None:
    post = Post()
    post.publish(OWN, to="d1")
    post.publish(OWN, to="d2")
    post.box.disconnect("d1")
    post.drain()
    assert not post.wire.messages("d1") and blocks_of(post.wire.messages("d2")) == ["d0"]
    assert post.link("d1").abandoned_bytes["gone"] == post.link("d2").sent_bytes
    assert post.link("d1").sent_bytes == 0


def test_what_a_link_does_not_take_is_not_counted_as_sent() -> None:
    post = Post()
    post.wire.broken = True
    post.box.tell("d1", 0, Credit(3))
    post.drain()
    assert post.link().sent_messages == 0
    assert post.link().abandoned_bytes["no_link"] == post.wire.wire_bytes("d1")


@pytest.mark.parametrize(("reason", "data"), [("leave", []), ("retire", ["d0"]), ("finished", ["d0"])])
def test_a_leavers_data_is_not_sent_and_goodbye_comes_last(reason: str, data: list[str]) -> None:
    post = Post()
    post.publish(OWN)
    post.box.farewell(Farewell("d1", reason), 0)
    post.drain()
    messages = post.wire.messages("d1")
    assert blocks_of(messages) == data and messages[-1] == Bye(reason)
    assert bool(post.link().abandoned_bytes["leaving"]) == (not data)


def test_what_is_still_queued_at_the_end_is_abandoned() -> None:
    post = Post()
    post.publish(OWN, THEIRS)
    post.box.abandon("exit")
    post.drain()
    assert not post.wire.sent and set(post.link().abandoned_bytes) == {"exit"}
