"""The receiver: a bad message costs one counted drop and changes nothing; a good one is taken in once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.protocol import actions as do
from tests.support.receivers import ReceivingSide
from tests.support.simulated import SECOND, Network
from tests.support.simulated_checks import started
from transport.shaping.accounting import MAX_PEERS, OTHERS, Accounts, LinkAccount
from transport.wire.checksum import xxh3
from transport.wire.messages import Ack, Buffer, Envelope, Gossip, Message, Nack, Ping, Update, Updates
from transport.wire.packing import pack, wire_bytes
from transport.wire.tensor_codec import encode

ROWS, RANK = 4, 2
DEPART_NS = 1 * SECOND
MATRIX = torch.arange(8.0).reshape(ROWS, RANK)


class ReceivingDevice:
    """d0's receiver in a network of three devices, and the matrices that it took in."""

    def __init__(self) -> None:
        self.net: Network = started(3)
        self.device = self.net["d0"]
        self.accounts, self.events = Accounts(), Counter[str]()
        protocol = self.device.protocol
        self.side = ReceivingSide(protocol, self.accounts, self.events, (ROWS, RANK), authenticated=False)
        self.matrices: list[Tensor] = []
        take_in = protocol.update

        def update(now: int, source: str, header: Update, matrix: object, payload: Any) -> list[do.Action]:
            if isinstance(matrix, Tensor):  # the simulated network carries numpy arrays
                self.matrices.append(matrix)
            return take_in(now, source, header, matrix, payload)

        protocol.update = update  # type: ignore[method-assign]

    def take(self, frames: Sequence[Buffer], source: str = "d1") -> list[do.Action]:
        return self.side.take(2 * SECOND, source, frames)

    def link(self, peer: str = "d1") -> LinkAccount:
        return self.accounts.link(peer)

    def state(self) -> tuple[object, ...]:
        protocol = self.device.protocol
        peers = {name: (p.greeted, p.done, sorted(p.manifests)) for name, p in protocol.peers.items()}
        return self.device.table(), list(protocol.members), protocol.phase, protocol.round, peers


@pytest.fixture(scope="module")
def _door() -> ReceivingDevice:
    return ReceivingDevice()


@pytest.fixture
def door(_door: ReceivingDevice) -> ReceivingDevice:
    """The network is shared, so tests must not change it. The counters are new for each test."""
    _door.accounts = _door.side.accounts._accounts = Accounts()
    _door.events.clear()
    _door.matrices.clear()
    return _door


numbers = iter(range(1, 1 << 40))
DIGEST = b"v" * 16


def framed(message: Message, payload: Buffer | None = None, src: str = "d1") -> list[Buffer]:
    return pack(Envelope(src, 0, next(numbers), DEPART_NS, DEPART_NS), message, payload)


def update(payload: bytes, **changes: Any) -> Update:
    """A header of d1's block that fits the payload, with changes."""
    made = Update("d1", 0, "early", 3, 3, "train", "fp32", ROWS, RANK, 0, len(payload), xxh3(payload))
    return replace(made, **changes)


def sent(payload: bytes | None = None, **changes: Any) -> list[Buffer]:
    payload = encode(MATRIX, "fp32") if payload is None else payload
    return framed(Updates([update(payload, **changes)]), payload)


def refused(door: ReceivingDevice, reason: str, peer: str = "d1") -> bool:
    """Whether exactly one message was dropped, for this reason, and nothing was taken in."""
    link = door.link(peer)
    return (
        link.dropped_messages == {reason: 1}
        and link.dropped_bytes[reason] > 0
        and link.received_messages == 0
        and not door.matrices
    )


# -- accepted messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16", "int8"])
def test_a_complete_matrix_is_decoded_and_taken_in(door: ReceivingDevice, codec: str) -> None:
    door.take(sent(encode(MATRIX, codec), codec=codec))
    (values,) = door.matrices
    assert values.dtype == torch.float32 and torch.allclose(values, MATRIX, atol=0.1)
    assert door.link().received_messages == 1 and not door.link().dropped_messages


def test_a_matrix_in_fragments_is_taken_in_with_its_last_fragment(door: ReceivingDevice) -> None:
    payload = encode(MATRIX, "fp32")
    for offset in (0, 16):
        assert not door.matrices
        door.take(framed(Updates([update(payload, offset=offset)]), payload[offset : offset + 16]))
    assert torch.equal(door.matrices[0], MATRIX)
    assert door.link().received_messages == 2


def test_bytes_and_latency_of_received_messages_are_counted(door: ReceivingDevice) -> None:
    frames = framed(Ping(3, DIGEST))
    door.take(frames)
    assert door.link().received_bytes == wire_bytes(frames)
    assert door.link().latency.quantiles_s() == {"p50": 1.0, "p95": 1.0, "p99": 1.0}


def test_a_control_message_returns_the_actions_of_the_protocol(door: ReceivingDevice) -> None:
    digest = door.device.protocol.members.digest()
    assert door.take(framed(Ping(3, digest))) == [do.Tell("d1", Ack(3, digest))]


# -- refused messages --------------------------------------------------------------------------------------

GOOD = framed(Ping(3, DIGEST))
MALFORMED: dict[str, list[Buffer]] = {
    "no frame": [],
    "an empty frame": [b""],
    "three frames": [*GOOD, b"more", b"and more"],
    "a payload where none belongs": [*GOOD, b"payload"],
    "no unweft message": [b"xx" + bytes(GOOD[0])[2:]],
    "another version": [bytes(GOOD[0])[:2] + b"\xff" + bytes(GOOD[0])[3:]],
    "an unknown kind": [bytes(GOOD[0])[:3] + b"\xff" + bytes(GOOD[0])[4:]],
    "cut off": [bytes(GOOD[0])[:-1]],
    "with something behind": [bytes(GOOD[0]) + b"\0"],
    "an update without its payload": sent()[:1],
    "an update with an empty payload": [sent()[0], b""],
}


@pytest.mark.parametrize("frames", MALFORMED.values(), ids=MALFORMED)
def test_malformed_frames_cost_one_counted_drop(door: ReceivingDevice, frames: list[Buffer]) -> None:
    before = door.state()
    assert door.take(frames) == []
    assert door.link().dropped_messages == {"malformed": 1} and door.events == {"malformed": 1}
    assert door.state() == before


def test_a_message_with_a_false_sender_is_dropped(door: ReceivingDevice) -> None:
    before = door.state()
    assert door.take(framed(Ping(3, DIGEST), src="d2"), source="d1") == []
    assert refused(door, "malformed") and door.state() == before
    assert door.link("d2").received_messages == door.link("d2").dropped_bytes.total() == 0


FP32 = encode(MATRIX, "fp32")
NAN, INFINITE = MATRIX.clone(), MATRIX.clone()
NAN[1, 1], INFINITE[1, 1] = torch.nan, torch.inf
BAD: dict[str, list[Buffer]] = {
    "another number of rows": sent(rows=RANK, rank=ROWS),
    "another rank": sent(encode(MATRIX[:, :1].contiguous(), "fp32"), rank=1),
    "an unknown group": sent(group="nowhere"),
    "an unknown codec": sent(codec="fp7"),
    "a size that is not the codec's": sent(codec="fp16"),
    "too long for its shape": sent(FP32 + b"\0" * 4),
    "NaN": sent(NAN.numpy().tobytes()),
    "infinity": sent(INFINITE.numpy().tobytes()),
    "another checksum": sent(xxh3=1),
    "a part without its beginning": framed(Updates([update(FP32, offset=16)]), FP32[16:]),
}


@pytest.mark.parametrize("frames", BAD.values(), ids=BAD)
def test_an_impossible_matrix_costs_one_counted_drop(door: ReceivingDevice, frames: list[Buffer]) -> None:
    before = door.state()
    assert door.take(frames) == []
    assert refused(door, "malformed") and door.events == {"malformed": 1}
    assert door.state() == before


def test_after_a_bad_matrix_a_good_one_is_taken_in(door: ReceivingDevice) -> None:
    door.take(sent(xxh3=1))
    door.take(sent(version=4))
    assert len(door.matrices) == 1


def test_data_from_a_stranger_is_dropped(door: ReceivingDevice) -> None:
    payload = encode(MATRIX, "fp32")
    door.take(framed(Updates([update(payload)]), payload, src="mallory"), source="mallory")
    assert refused(door, "stranger", OTHERS)


def test_invented_senders_use_up_no_accounts(door: ReceivingDevice) -> None:
    for n in range(MAX_PEERS + 1):
        door.take(framed(Nack(1), src=f"ghost{n}"), source=f"ghost{n}")
    door.take(framed(Ack(1, DIGEST), src="d2"), source="d2")
    books = door.accounts.to_dict()
    assert set(books) == {OTHERS, "d2"} and books["d2"]["received_messages"] == 1
    assert books[OTHERS]["dropped_messages"] == {"stranger": MAX_PEERS + 1}


def test_data_of_an_unknown_block_is_dropped(door: ReceivingDevice) -> None:
    door.take(sent(block="d9"))
    assert refused(door, "unknown")


def test_a_fragment_that_is_not_admitted_takes_no_memory(door: ReceivingDevice) -> None:
    payload = encode(MATRIX, "fp32")
    door.take(framed(Updates([update(payload, block="d9")]), payload[:16]))
    assert refused(door, "unknown") and door.side.assembly._fragments.bytes_in_flight == 0


def test_a_replayed_message_is_dropped(door: ReceivingDevice) -> None:
    frames = framed(Ping(3, DIGEST))
    door.take(frames)
    assert door.take(frames) == []
    assert door.link().received_messages == 1 and door.link().dropped_messages == {"replayed": 1}


def test_malformed_records_are_dropped_and_counted(door: ReceivingDevice) -> None:
    before = door.state()
    door.take(framed(Gossip([{"device": "d5"}], False, 3)))
    assert refused(door, "malformed") and door.state() == before


def test_data_of_a_deleted_block_is_dropped() -> None:
    door = ReceivingDevice()
    door.net.signal("d2", "leave")
    door.net.rounds(2)
    door.take(sent(block="d2"))
    assert refused(door, "tombstoned")


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_arbitrary_bytes_change_only_a_counter(_door: ReceivingDevice, frames: list[bytes]) -> None:
    _door.accounts = _door.side.accounts._accounts = Accounts()
    before = _door.state()
    assert _door.take(frames) == []
    assert _door.link().dropped_messages == {"malformed": 1} and _door.state() == before


@given(st.data())
def test_an_altered_byte_lets_no_matrix_through(_door: ReceivingDevice, data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in sent()]
    frame = frames[data.draw(st.integers(0, 1))]
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    _door.matrices.clear()
    assert _door.take([bytes(f) for f in frames]) == [] and not _door.matrices


# -- dropped fragments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["block", "peer"])
def test_after_a_drop_an_unfinished_matrix_cannot_be_completed(door: ReceivingDevice, how: str) -> None:
    payload = encode(MATRIX, "fp32")
    door.take(framed(Updates([update(payload)]), payload[:16]))
    door.side.delivery.drop_block(BlockKey("d1", 0)) if how == "block" else door.side.delivery.forget_peer(
        "d1"
    )
    door.take(framed(Updates([update(payload, offset=16)]), payload[16:]))
    assert not door.matrices and door.link().dropped_messages == {"malformed": 1}


def test_a_drop_leaves_other_blocks_alone(door: ReceivingDevice) -> None:
    payload = encode(MATRIX, "fp32")
    door.take(framed(Updates([update(payload)]), payload[:16]))
    door.side.delivery.drop_block(BlockKey("d2", 0))
    door.take(framed(Updates([update(payload, offset=16)]), payload[16:]))
    assert len(door.matrices) == 1


# -- latencies ---------------------------------------------------------------------------------------------


def test_a_departure_before_the_hello_is_no_latency(door: ReceivingDevice) -> None:
    """The sender names the departure. A time before its Hello, or after the arrival, is in no quantile."""
    door.side.accounts._greeted_ns["d1"] = DEPART_NS
    for depart_ns in (0, DEPART_NS - 1, 5 * SECOND):
        door.take(pack(Envelope("d1", 0, next(numbers), depart_ns, DEPART_NS), Nack(1)))
    assert door.link().received_messages == 3 and not len(door.link().latency)
    assert door.link().to_dict()["impossible_latencies"] == 3
    door.take(pack(Envelope("d1", 0, next(numbers), DEPART_NS, DEPART_NS), Nack(1)))
    assert len(door.link().latency) == 1 and door.link().to_dict()["impossible_latencies"] == 3


def test_a_hello_bounds_the_later_latencies_of_its_sender(door: ReceivingDevice) -> None:
    now = 100 * SECOND
    hello = Envelope("d1", 0, 1, 0, now, "Hello")
    assert door.side.accounts.longest_ns(now, hello) == 60 * SECOND
    assert door.side.accounts.longest_ns(now + SECOND, Envelope("d1", 0, 2, 0, now, "Nack")) == 61 * SECOND
    door.side.delivery.forget_peer("d1")


def test_a_message_whose_answer_cannot_be_sent_counts_as_dropped_only() -> None:
    device = ReceivingDevice()
    frames = pack(Envelope("d1", 0, 99, DEPART_NS), Ping(1, b"v" * 16))
    device.take(frames)
    link, size = device.link(), wire_bytes(frames)
    assert (link.received_messages, link.received_bytes) == (1, size)
    for _ in range(2):  # its second answer fails too
        device.side.delivery.on_answer_fault(2 * SECOND, "d1", ValueError("no address"))
    assert (link.received_messages, link.received_bytes) == (0, 0)
    assert (link.dropped_messages["handler_error"], link.dropped_bytes["handler_error"]) == (1, size)
