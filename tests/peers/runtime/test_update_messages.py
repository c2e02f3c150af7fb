"""Many matrices in one message: what goes together, what stays after a deletion, what a receiver takes in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from coordinator_free.identifiers import BlockKey
from tests.peers.runtime.test_receiver import FP32, MATRIX, ReceivingDevice, framed, refused, update
from tests.support.sending import OWN, RANK, ROWS, SendingDevice, blocks_of, received_matrices
from transport.shaping.accounting import Accounts
from transport.wire.limits import MAX_UPDATES
from transport.wire.messages import Manifest, Updates
from transport.wire.packing import wire_bytes

BLOCKS = [BlockKey(f"d{n}", 0) for n in range(30)]
SIZE = 2 * ROWS * RANK  # bytes of a matrix in fp16


def updates_in(device: SendingDevice, peer: str = "d1") -> list[list[str]]:
    """The blocks in each message of updates."""
    messages = device.links.messages(peer)
    return [blocks_of([message]) for message in messages if isinstance(message, Updates)]


def test_the_matrices_of_a_round_go_in_one_message_and_all_arrive() -> None:
    device = SendingDevice()
    device.publish(*BLOCKS)
    device.drain()
    assert updates_in(device) == [[block.device for block in BLOCKS]]
    expected = [device.matrices[block, "early"] for block in BLOCKS]
    assert all(
        torch.allclose(got, sent, atol=0.01)
        for got, sent in zip(received_matrices(device, "d1"), expected, strict=True)
    )
    assert device.link().payload_bytes == len(BLOCKS) * SIZE


def test_a_message_holds_no_more_than_a_frame_or_a_sixteenth_of_the_budget() -> None:
    device = SendingDevice(rows=4096)  # 32 KiB a matrix in fp16, with its header more than half of a frame
    device.publish(*BLOCKS[:5])
    device.drain()
    assert [len(blocks) for blocks in updates_in(device)] == [1, 1, 1, 1, 1]
    poor = SendingDevice(budget_bytes=16 * 5 * SIZE)
    poor.publish(*BLOCKS[:12])
    poor.drain()
    assert [len(blocks) for blocks in updates_in(poor)] == [4, 4, 4]


def test_a_message_holds_no_more_matrices_than_a_receiver_allows() -> None:
    device = SendingDevice(rows=1)
    device.publish(*(BlockKey(f"d{n}", 0) for n in range(MAX_UPDATES + 3)))
    device.drain()
    assert [len(blocks) for blocks in updates_in(device)] == [MAX_UPDATES, 3]


def test_each_cause_has_messages_of_its_own() -> None:
    device = SendingDevice()
    device.publish(*BLOCKS[:2], cause="transfer")
    device.publish(*BLOCKS[2:4])
    device.drain()
    assert set(device.link().sent_by_cause) == {"transfer", "train", "control"}
    assert updates_in(device) == [["d0", "d1"], ["d2", "d3"]]


def test_a_deletion_takes_only_its_block_out_of_a_queued_message() -> None:
    device = SendingDevice()
    device.publish(*BLOCKS[:4])
    queued = sum(item.wire_bytes for item in device.sender._shaper.pending())
    device.purge(BLOCKS[2])
    device.drain()
    assert updates_in(device) == [["d0", "d1", "d3"]]
    abandoned = device.link().abandoned_bytes
    assert set(abandoned) == {"leave"} and SIZE < abandoned["leave"] < SIZE + 100
    assert device.links.wire_bytes("d1") == queued - abandoned["leave"]


def test_a_newer_version_takes_only_its_matrix_out_of_a_queued_message() -> None:
    device = SendingDevice()
    device.publish(*BLOCKS[:3])
    device.publish(OWN, version=4)
    device.drain()
    assert updates_in(device) == [["d1", "d2"], ["d0"]]
    assert set(device.link().abandoned_bytes) == {"superseded"}


def test_the_last_deletion_takes_the_message() -> None:
    device = SendingDevice()
    device.publish(*BLOCKS[:2])
    for block in BLOCKS[:2]:
        device.purge(block)
    device.drain()
    assert [type(message) for message in device.links.messages("d1")] == [Manifest]


# -- the receiver ----------------------------------------------------------------------------------------


@pytest.fixture
def door() -> ReceivingDevice:
    made = ReceivingDevice()
    made.accounts = made.side.accounts._accounts = Accounts()
    return made


GOOD = update(FP32)
UNKNOWN = replace(GOOD, block="d9")


def test_a_message_counts_as_received_if_one_of_its_matrices_is_taken_in(door: ReceivingDevice) -> None:
    frames = framed(Updates([UNKNOWN, GOOD]), 2 * FP32)
    door.take(frames)
    assert len(door.matrices) == 1
    assert door.link().received_bytes == wire_bytes(frames) and not door.link().dropped_messages


def test_a_message_of_refused_matrices_is_dropped_once(door: ReceivingDevice) -> None:
    door.take(framed(Updates([UNKNOWN, UNKNOWN]), 2 * FP32))
    assert refused(door, "unknown")


def test_each_matrix_is_cut_at_its_place(door: ReceivingDevice) -> None:
    second = torch.ones(GOOD.rows, GOOD.rank)
    payload = FP32 + second.numpy().tobytes()
    door.take(framed(Updates([replace(GOOD, xxh3=None), replace(GOOD, block="d2", xxh3=None)]), payload))
    assert torch.equal(door.matrices[1], second)


@pytest.mark.parametrize("bad", [{"xxh3": 1}, {"round": 1 << 30}], ids=["a checksum", "a round"])
def test_of_a_message_with_one_bad_matrix_nothing_is_taken_in(
    door: ReceivingDevice, bad: dict[str, Any]
) -> None:
    door.take(framed(Updates([GOOD, replace(GOOD, **bad), GOOD]), 3 * FP32))
    assert refused(door, "malformed") and door.events["malformed"] == 1


def test_a_kept_matrix_does_not_keep_the_frame_of_the_others(door: ReceivingDevice) -> None:
    frame = bytearray(2 * FP32)
    plain = replace(GOOD, xxh3=None)
    door.take(framed(Updates([plain, replace(plain, block="d2")]), memoryview(frame)))
    frame[:] = bytes(len(frame))
    assert all(torch.equal(matrix, MATRIX) for matrix in door.matrices) and len(door.matrices) == 2


def test_dear_links_get_smaller_messages() -> None:
    """At R = beta / 3 a byte costs four. A message must still fit in the budget of a round."""
    device = SendingDevice(budget_bytes=64 * 5 * SIZE, rate_Bps=1 << 20, beta_Bps=3 << 20)
    device.publish(*BLOCKS[:8])
    device.drain()
    assert [len(blocks) for blocks in updates_in(device)] == [4, 4]
