"""In `newest` only the owner makes versions of a block: versions without its signature are refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from coordinator_free.identifiers import BlockKey, Part
from peers.config import DeviceConfig
from peers.learning.learner import Learner
from peers.protocol.actions import Publish
from peers.protocol.signed_versions import SignedCopy, Versions, statement
from peers.runtime.payload_encoder import PayloadEncoder
from peers.runtime.sender import Sender, Shape
from peers.runtime.spec import DeviceSpec
from tests.support.receivers import ReceivingSide
from tests.support.signatures import public, sign_as, verify
from tests.support.simulated_checks import started
from transport.links.interface import Links
from transport.shaping.accounting import Accounts
from transport.shaping.channel import FixedChannel, LinkQuality
from transport.wire.checksum import xxh3
from transport.wire.limits import HEADER_BYTES, SIGNATURE_BYTES
from transport.wire.messages import Buffer, Envelope, Manifest, Update, Updates
from transport.wire.packing import pack, unpack, wire_bytes
from transport.wire.tensor_codec import encode

ROWS, RANK = 6, 2
MATRIX = torch.arange(12.0).reshape(ROWS, RANK)
PART = Part(BlockKey("d1", 0), "early")
PAYLOAD = bytes(encode(MATRIX, "fp32"))


def signed(by: str = "d1", part: Part = PART, version: int = 7, codec: str = "fp32") -> bytes:
    return sign_as(by, statement(part, version, codec, PAYLOAD))


# -- received versions -----------------------------------------------------------------------------------


class ReceivingDevice:
    """d0's receiver in a network of three devices in mode `newest`, and the copies that it takes in."""

    def __init__(self) -> None:
        self.net = started(3, "newest")
        protocol = self.net["d0"].protocol
        self.events = Counter[str]()
        self.side = ReceivingSide(protocol, Accounts(), self.events, (ROWS, RANK), authenticated=True)
        self.copies: list[Any] = []

        def on_copy(peer: str, part: Part, version: int, round_: int, values: object) -> None:
            self.copies.append(values)

        protocol.exchange.on_copy = on_copy  # type: ignore[method-assign]

    def take(self, header: Update, payload: Buffer = PAYLOAD, source: str = "d2") -> None:
        frames = pack(Envelope(source, 0), Updates([header]), payload)
        self.side.take(self.net.now, source, frames)


HEADER = Update(*("d1", 0, "early", 7, 3, "train", "fp32", ROWS, RANK, 0, len(PAYLOAD)), signature=signed())


@pytest.fixture(scope="module")
def _door() -> ReceivingDevice:
    return ReceivingDevice()


@pytest.fixture
def door(_door: ReceivingDevice) -> ReceivingDevice:
    _door.copies.clear()
    _door.events.clear()
    return _door


@pytest.mark.parametrize("source", ["d1", "d2"], ids=["from its owner", "from a relay"])
def test_a_signed_version_is_kept_unchanged(door: ReceivingDevice, source: str) -> None:
    door.take(HEADER, source=source)
    (copy,) = door.copies
    assert torch.equal(copy.matrix, MATRIX)
    assert (copy.payload, copy.signature) == (PAYLOAD, signed())
    assert not door.events


OTHER = Part(BlockKey("d1", 1), "early")
FORGED = {
    "not signed": replace(HEADER, signature=None),
    "signed by the relay": replace(HEADER, signature=signed("d2")),
    "passed off as newer": replace(HEADER, version=8),
    "signed for another group": replace(HEADER, signature=signed(part=Part(PART.block, "late"))),
    "signed for another incarnation": replace(HEADER, signature=signed(part=OTHER)),
    "another's block passed off as this one's": replace(HEADER, block="d2"),
}


@pytest.mark.parametrize("header", FORGED.values(), ids=FORGED)
def test_a_version_without_the_signature_of_its_owner_is_refused(
    door: ReceivingDevice, header: Update
) -> None:
    door.take(header)
    assert door.copies == [] and door.events == {"forged": 1}


def test_a_version_that_a_relay_has_changed_is_refused(door: ReceivingDevice) -> None:
    door.take(HEADER, bytes(len(PAYLOAD)))
    assert door.copies == [] and door.events == {"forged": 1}


def test_in_average_nothing_is_signed_and_nothing_checked() -> None:
    assert not started(2).devices["d0"].protocol.signed_versions


# -- sent versions ---------------------------------------------------------------------------------------


class SendingDevice:
    """d0's sender with a link to d2, and the signed versions that it relays."""

    def __init__(self, codec: str = "int8", rows: int = ROWS) -> None:
        self.sent: list[list[Buffer]] = []
        layout = SimpleNamespace(rows=lambda group: rows, rank=lambda group: RANK)
        matrix = torch.randn(rows, RANK)
        learner = cast(Learner, SimpleNamespace(layout=layout, read=lambda key, group: matrix))
        config = DeviceConfig.model_validate({"radio": {"codec": codec}, "mixing": {"mode": "newest"}})
        near = FixedChannel(LinkQuality(1 << 40, 1))
        spec = DeviceSpec("d0", config, "sim://d0", "sim://d0", (), "", channel=near)
        wire = SimpleNamespace(connect=lambda *where: None, send=self._send)
        self.versions = Versions("d0", lambda data: sign_as("d0", data))
        self.encoder = PayloadEncoder(spec, learner, self.versions)
        shapes = {"early": Shape(rows, RANK)}
        self.sender = Sender(spec, shapes, cast(Links, wire), Accounts(), 0, signed=True)
        self.sender.connect("d2", "sim://d2", 0)
        self.sender.start_round(3, ["d0", "d2"], 0)

    def _send(self, peer: str, frames: list[Buffer]) -> bool:
        self.sent.append(frames)
        return True

    def publish(self, part: Part, version: int) -> list[tuple[Update, bytes]]:
        action = Publish("d2", 3, ((part, version, "train"),), Manifest(3, "train", b"viewview", []))
        self.sender.publish(action, self.encoder.encode(action), 0)
        while (at := self.sender.next_ns(1 << 40)) is not None:
            self.sender.send_due(at)
        found = [(unpack(frames)[1], frames) for frames in self.sent]
        return [(m.headers[0], bytes(frames[1])) for m, frames in found if isinstance(m, Updates)]


def test_the_owner_signs_the_bytes_that_it_sends() -> None:
    own = Part(BlockKey("d0", 0), "early")
    ((header, payload),) = SendingDevice().publish(own, 5)
    assert header.signature is not None
    assert verify(public("d0"), statement(own, 5, "int8", payload), header.signature)


def test_a_relay_forwards_the_bytes_and_the_signature_unchanged() -> None:
    post = SendingDevice()
    coded = bytes(encode(MATRIX, "int8"))
    post.versions.keep(PART, 7, SignedCopy(MATRIX, coded, b"as it came"))
    ((header, payload),) = post.publish(PART, 7)
    assert (payload, header.signature) == (coded, b"as it came")


def test_each_fragment_carries_the_signature_of_the_whole_payload() -> None:
    sent = SendingDevice(rows=70_000).publish(Part(BlockKey("d0", 0), "early"), 5)  # three frames
    assert len(sent) == 3 and len({header.signature for header, _ in sent}) == 1


def test_a_deleted_block_is_not_relayed() -> None:
    versions = Versions("d0", bytes)
    versions.keep(PART, 7, SignedCopy(MATRIX, PAYLOAD, b""))
    versions.drop_block(PART.block)
    assert versions.relayed(PART, 7) is None


def test_a_version_that_did_not_arrive_has_no_signature() -> None:
    versions = Versions("d0", bytes)
    versions.keep(PART, 7, SignedCopy(MATRIX, PAYLOAD, b""))
    assert versions.relayed(PART, 8) is None and versions.sign(PART, 8, "fp32", PAYLOAD) is None


def test_a_signature_takes_no_more_than_is_planned_for_it() -> None:
    header = replace(HEADER, signature=bytes(64), xxh3=xxh3(PAYLOAD))
    bare = replace(header, signature=None)
    more = [wire_bytes(pack(Envelope("d0", 0), Updates([h]), PAYLOAD)) for h in (header, bare)]
    assert more[0] - more[1] <= SIGNATURE_BYTES < HEADER_BYTES
