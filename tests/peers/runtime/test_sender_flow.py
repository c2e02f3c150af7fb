"""Flow control by credit, losses in an emulated partition, and error feedback of coarse codecs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from coordinator_free.identifiers import BlockKey, Part
from peers.config import DeviceConfig
from peers.learning.learner import Learner
from peers.protocol.actions import Publish
from peers.runtime.payload_encoder import PayloadEncoder
from peers.runtime.sender import Sender, Shape
from peers.runtime.spec import DeviceSpec
from tests.support.sending import FakeLinks, headers_of
from transport.links.interface import Links
from transport.shaping.accounting import Accounts
from transport.shaping.channel import FixedChannel, LinkQuality
from transport.wire.limits import WINDOW_BYTES
from transport.wire.messages import Manifest, Ping, Update
from transport.wire.packing import unpack
from transport.wire.tensor_codec import decode

ROWS, RANK = 32768, 8  # 512 KiB as fp16
OTHER = BlockKey("d2", 0)
HOUR_NS = 3600 * 1_000_000_000
ADDRESSES = {d: f"tcp://{d}:1" for d in ("d0", "d1", "d2")}


class FakeLearner:
    """One group; every block has the same values."""

    groups = ("all",)

    def __init__(self) -> None:
        self.values = torch.linspace(-1, 1, ROWS * RANK).reshape(ROWS, RANK)
        self.layout = SimpleNamespace(rows=lambda group: ROWS, rank=lambda group: RANK)

    def read(self, key: object, group: str) -> torch.Tensor:
        return self.values.clone()


class PacedDevice:
    """d0's sender and encoder with a link to d1."""

    def __init__(self, clock: str = "real", **radio: Any) -> None:
        radio = {"budget_bytes": 1 << 40, "rate_Bps": 1 << 40, **radio}
        config = DeviceConfig.model_validate({"clock": clock, "radio": radio})
        channel = FixedChannel(LinkQuality(config.radio.rate_Bps, 1))
        spec = DeviceSpec(
            "d0", config, ADDRESSES["d0"], ADDRESSES["d0"], (), "out", channel=channel, group=ADDRESSES
        )
        self.links, self.accounts, self.now = FakeLinks(), Accounts(), 0
        self.encoder = PayloadEncoder(spec, cast(Learner, FakeLearner()))
        shapes = {"all": Shape(ROWS, RANK)}
        self.woken = False
        links = cast(Links, self.links)
        self.sender = Sender(spec, shapes, links, self.accounts, 0, wake=self._wake)
        self.sender.connect("d1", ADDRESSES["d1"], 0)
        self.sender.start_round(0, ["d0", "d1"], 0)

    def _wake(self) -> None:
        self.woken = True

    def encoded(self, version: int, key: BlockKey) -> tuple[Publish, Any]:
        part = (Part(key, "all"), version, "train")
        action = Publish("d1", version, (part,), Manifest(version, "train", b"viewview", []))
        return action, self.encoder.encode(action)

    def publish(self, version: int, key: BlockKey) -> None:
        self.sender.publish(*self.encoded(version, key), 0)

    def wait_an_hour(self) -> list[Any]:
        """Let an hour pass; returns the messages that left."""
        before, end = len(self.links.sent), self.now + HOUR_NS
        while (due := self.sender.next_ns(self.now)) is not None and due <= end:
            self.now = max(self.now, due)
            self.sender.send_due(self.now)
        self.now = end
        return [unpack(frames) for _, frames in self.links.sent[before:]]


def updates(messages: list[Any]) -> list[Update]:
    return headers_of(message for _, message in messages)


def payload(messages: list[Any]) -> int:
    """Bytes of data in messages of whole matrices."""
    return sum(update.total for update in updates(messages))


@pytest.fixture
def full() -> PacedDevice:
    """20 MiB are queued, and the window is full."""
    device = PacedDevice()
    for version in range(40):
        device.publish(version, BlockKey(f"b{version}", 0))
    device.wait_an_hour()
    return device


def test_at_most_a_window_of_data_is_in_flight(full: PacedDevice) -> None:
    size = full.accounts.link("d1").sent_by_cause["train"]
    assert WINDOW_BYTES <= size < WINDOW_BYTES + (1 << 17)
    assert full.wait_an_hour() == []


def test_credit_releases_as_many_bytes(full: PacedDevice) -> None:
    full.sender.on_credit("d1", 1 << 20)
    assert payload(full.wait_an_hour()) == pytest.approx(
        1 << 20, rel=0.51
    )  # to the size of one message, 512 KiB


def test_a_restarted_peer_has_no_data_in_flight(full: PacedDevice) -> None:
    full.sender.reset_in_flight("d1")
    assert payload(full.wait_an_hour()) == pytest.approx(WINDOW_BYTES, rel=0.07)


@pytest.mark.parametrize(("clock", "released"), [("real", True), ("virtual", False)])
def test_a_broken_connection_frees_the_window_in_real_time_only(clock: str, released: bool) -> None:
    device = PacedDevice(clock)
    for version in range(40):
        device.publish(version, BlockKey(f"b{version}", 0))
    device.wait_an_hour()
    device.links.on_broken("d1")
    assert bool(device.wait_an_hour()) == device.woken == released


def test_control_passes_while_data_waits_for_credit(full: PacedDevice) -> None:
    full.sender.send_control("d1", 0, Ping(1, b"v" * 16))
    assert [message for _, message in full.wait_an_hour()] == [Ping(1, b"v" * 16)]


def test_a_strangers_credit_is_not_kept() -> None:
    device = PacedDevice()
    device.sender.on_credit("mallory", 1 << 60)
    assert "mallory" not in device.sender._in_flight


def test_messages_to_one_device_are_numbered_without_a_gap_in_virtual_time() -> None:
    device = PacedDevice("virtual")
    device.sender.connect("?0", ADDRESSES["d1"], 0)
    for peer in ("?0", "d1", "?0", "d1"):
        device.sender.send_control(peer, 0, Ping(1, b"v" * 16))
    assert sorted(envelope.seq for envelope, _ in device.wait_an_hour()) == [1, 2, 3, 4]


@pytest.mark.parametrize("peer", ["d1", "?0"])
def test_in_a_partition_messages_are_lost_and_counted_as_lost(peer: str) -> None:
    device = PacedDevice()
    device.sender.connect("?0", ADDRESSES["d1"], 0)
    device.sender.set_partition(frozenset({"d1"}), 0)
    device.sender.send_control(peer, 0, Ping(1, b"v" * 16))
    assert device.wait_an_hour() == []
    account = device.accounts.link(peer)
    assert 0 < account.lost_bytes == account.sent_bytes
    device.sender.set_partition(frozenset(), device.now)
    device.sender.send_control(peer, 0, Ping(2, b"v" * 16))
    assert len(device.wait_an_hour()) == 1


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_error_feedback_lasts_until_the_block_is_deleted(codec: str) -> None:
    device, wanted, got = PacedDevice(codec=codec), FakeLearner().values, []
    for version in range(30):
        _, payloads = device.encoded(version, OTHER)
        payload = next(iter(payloads.values()))
        got.append(decode(payload.data, codec, ROWS, RANK))
    first = float((got[0] - wanted).square().mean())
    mean = float((torch.stack(got).mean(0) - wanted).square().mean())
    assert mean < first / 100  # 30 independent roundings would give 1 / 30
    device.encoder.purge(OTHER)
    assert not device.encoder._errors
    assert not device.encoder._cache


def test_a_cost_per_second_of_air_time_reduces_the_budget() -> None:
    free = PacedDevice(budget_bytes=1000, rate_Bps=100)
    dear = PacedDevice(budget_bytes=1000, rate_Bps=100, beta_Bps=100)
    assert dear.sender.data_budget() == free.sender.data_budget() // 2
