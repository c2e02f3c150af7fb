"""The sender: every queued byte is sent or abandoned for a reason, and no purged block leaves."""

from __future__ import annotations

import pytest
import torch

from coordinator_free.identifiers import BlockKey, Part
from peers.protocol.actions import Farewell, Publish
from peers.runtime import sender
from tests.support.sending import (
    MANIFEST,
    OWN,
    RANK,
    ROWS,
    THEIRS,
    SendingDevice,
    blocks_of,
    headers_of,
    received_matrices,
)
from transport.wire.messages import Bye, Credit, Nack


def test_another_codec_for_one_publish_leaves_no_error_feedback() -> None:
    device = SendingDevice(budget_bytes=1 << 20)
    part = Part(OWN, "early")
    coarse = Publish("d1", 3, ((part, 3, "train"),), MANIFEST, {part: "int8"})
    device.perform(coarse)
    assert device.encoder.cached(coarse) is not None
    assert device.encoder.cached(Publish("d1", 3, coarse.parts, MANIFEST)) is None  # not encoded in fp16 yet
    device.drain()
    device.publish(OWN, version=4)
    device.drain()
    codecs = [header.codec for header in headers_of(device.links.messages("d1"))]
    assert codecs == ["int8", "fp16"]
    assert not device.encoder._errors  # the fp16 version has no rounding error to carry


# -- sending ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [ROWS, 40_000], ids=["one frame", "many frames"])
def test_a_receiver_gets_the_matrix(rows: int) -> None:
    device = SendingDevice(rows, codec="fp32")
    device.publish(OWN)
    device.drain()
    (values,) = received_matrices(device, "d1")
    assert torch.equal(values, device.matrices[BlockKey("d0", 0), "early"])


def test_the_manifest_comes_after_the_data() -> None:
    device = SendingDevice()
    device.publish(OWN, THEIRS)
    device.drain()
    messages = device.links.messages("d1")
    assert blocks_of(messages) == ["d0", "d1"] and messages[-1] == MANIFEST


def test_control_does_not_wait_behind_data() -> None:
    device = SendingDevice()
    device.publish(OWN)
    device.sender.send_control("d1", 0, Credit(3))
    device.drain()
    assert device.links.messages("d1")[0] == Credit(3)


def test_sent_bytes_are_counted_exactly_by_cause() -> None:
    device = SendingDevice()
    device.publish(OWN)
    device.publish(THEIRS, cause="transfer")
    device.sender.send_control("d1", 0, Credit(3))
    device.drain()
    link = device.link()
    assert link.sent_bytes == device.links.wire_bytes("d1") == link.sent_by_cause.total()
    assert link.sent_messages == len(device.links.sent) == 5
    assert link.payload_bytes == 2 * 2 * ROWS * RANK  # two matrices in fp16
    assert min(link.sent_by_cause["train"], link.sent_by_cause["transfer"]) > 2 * ROWS * RANK
    assert link.sent_by_cause["control"] > 0


@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize("rows", [ROWS, 40_000], ids=["one frame", "many frames"])
def test_a_part_takes_at_most_its_planned_bytes_on_the_wire(rows: int, codec: str) -> None:
    device = SendingDevice(rows, codec=codec, budget_bytes=1 << 40)
    device.publish(OWN)
    device.drain()
    assert device.link().sent_by_cause["train"] <= device.sender.part_wire_bytes("early")


def test_each_version_is_encoded_once_for_all_neighbours() -> None:
    device = SendingDevice()
    device.publish(OWN, to="d1")
    device.publish(OWN, to="d2")
    assert device.reads.total() == 1
    device.publish(OWN, to="d1", version=4)
    assert device.reads.total() == 2


def test_data_beyond_the_quota_waits_for_the_next_round() -> None:
    device = SendingDevice(budget_bytes=2000)
    assert (
        device.sender.part_wire_bytes("early")
        <= device.sender.data_budget()
        < 2 * device.sender.part_wire_bytes("early")
    )
    device.publish(OWN, THEIRS)
    device.drain()
    assert blocks_of(device.links.messages("d1")) == ["d0"]
    device.new_round()
    device.drain()
    assert blocks_of(device.links.messages("d1")) == ["d0", "d1"]
    assert device.sender.quota.violations == 0


# -- abandoning -----------------------------------------------------------------------------------------


def test_a_purge_abandons_the_queued_bytes_of_a_block() -> None:
    device = SendingDevice(40_000)
    device.publish(OWN, THEIRS)
    device.sender.send_due(device.now)  # one or two frames of d0's block
    before = len(device.links.sent)
    assert before
    device.purge(OWN)
    device.drain()
    assert set(blocks_of(device.links.messages("d1"))[before:]) == {"d1"}
    other = SendingDevice(40_000)
    other.publish(OWN, THEIRS)
    other.drain()
    assert device.link().sent_bytes + device.link().abandoned_bytes["leave"] == other.link().sent_bytes


def test_after_a_purge_a_block_is_encoded_again() -> None:
    device = SendingDevice()
    device.publish(OWN)
    device.purge(OWN)
    device.publish(OWN)
    assert device.reads[BlockKey("d0", 0), "early"] == 2


def test_after_a_refit_the_same_version_is_encoded_again() -> None:
    device = SendingDevice()
    device.publish(OWN, version=3)
    device.encoder.drop_cached(OWN)
    device.publish(OWN, version=3, to="d2")
    assert device.reads.total() == 2


def test_after_a_purge_no_rounding_error_of_the_block_is_carried_over() -> None:
    purged, new = SendingDevice(codec="int4"), SendingDevice(codec="int4")
    purged.publish(OWN, version=3)
    purged.purge(OWN)
    for device in (purged, new):
        device.publish(OWN, version=4)
        device.drain()
    assert torch.equal(received_matrices(purged, "d1")[-1], received_matrices(new, "d1")[-1])


def test_a_newer_version_replaces_queued_messages_of_an_older_one() -> None:
    device = SendingDevice()
    device.publish(OWN, version=3)
    device.publish(OWN, version=4)
    device.drain()
    versions = [header.version for header in headers_of(device.links.messages("d1"))]
    assert versions == [4]
    assert device.link().abandoned_bytes["superseded"] == device.link().sent_by_cause["train"]


def test_a_disconnect_abandons_the_queue_of_the_link() -> None:
    device = SendingDevice()
    device.publish(OWN, to="d1")
    device.publish(OWN, to="d2")
    device.sender.disconnect("d1")
    device.drain()
    assert not device.links.messages("d1") and blocks_of(device.links.messages("d2")) == ["d0"]
    assert device.link("d1").abandoned_bytes["gone"] == device.link("d2").sent_bytes
    assert device.link("d1").sent_bytes == 0


def test_links_to_invented_names_are_forgotten_and_known_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender, "MAX_PEERS", 4)
    device = SendingDevice()
    device.sender.send_control("d1", 0, Nack(1))
    device.drain()
    device.sender.disconnect("d1")
    device.sender.connect("d1", "sim://d1", device.now)
    for n in range(20):
        device.sender.connect(f"ghost{n}", f"sim://ghost{n}", device.now)
        device.sender.send_control(f"ghost{n}", 0, Nack(1))
        device.drain()
        device.sender.disconnect(f"ghost{n}")
    shaper = device.sender._shaper
    assert set(shaper._links) == {"d1", "d2", "ghost18", "ghost19"} == set(device.sender._shaped)
    assert {peer for peer, _ in shaper.sent.messages} == {"d1", "ghost18", "ghost19"}
    device.sender.send_control("d2", 0, Nack(1))
    device.drain()
    assert device.links.messages("d2") == [Nack(1)]


def test_a_message_that_the_link_refuses_is_not_counted_as_sent() -> None:
    device = SendingDevice()
    device.links.broken = True
    device.sender.send_control("d1", 0, Credit(3))
    device.drain()
    assert device.link().sent_messages == 0
    assert device.link().abandoned_bytes["no_link"] == device.links.wire_bytes("d1")


@pytest.mark.parametrize(("reason", "data"), [("leave", []), ("retire", ["d0"]), ("finished", ["d0"])])
def test_a_leaver_sends_no_queued_data_and_bye_is_the_last_message(reason: str, data: list[str]) -> None:
    device = SendingDevice()
    device.publish(OWN)
    device.sender.send_bye(Farewell("d1", reason), 0)
    device.drain()
    messages = device.links.messages("d1")
    assert blocks_of(messages) == data and messages[-1] == Bye(reason)
    assert bool(device.link().abandoned_bytes["leaving"]) == (not data)


def test_abandon_all_empties_the_queue() -> None:
    device = SendingDevice()
    device.publish(OWN, THEIRS)
    device.sender.abandon_all("exit")
    device.drain()
    assert not device.links.sent and set(device.link().abandoned_bytes) == {"exit"}
