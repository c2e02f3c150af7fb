"""A device's sender and encoder without sockets: tests queue data, let time pass, and read what left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from coordinator_free.identifiers import BlockKey, Part
from peers.config import DeviceConfig
from peers.learning.learner import Learner
from peers.learning.neighbour_copies import NeighbourCopies
from peers.protocol.actions import Publish
from peers.runtime.payload_encoder import PayloadEncoder
from peers.runtime.sender import Sender, Shape
from peers.runtime.spec import DeviceSpec
from transport.links.interface import BrokenHook, Links
from transport.shaping.accounting import Accounts, LinkAccount
from transport.shaping.channel import FixedChannel, LinkQuality
from transport.wire.fragments import Reassembler
from transport.wire.messages import Buffer, Manifest, Message, Update, Updates
from transport.wire.packing import unpack, wire_bytes
from transport.wire.tensor_codec import decode

ROWS, RANK = 128, 4
OWN, THEIRS = BlockKey("d0", 0), BlockKey("d1", 0)
MANIFEST = Manifest(3, "train", b"viewview", [])


class FakeLinks:
    """Links that keep the messages that they were given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, list[Buffer]]] = []
        self.broken = False  # True: `send` takes no message
        self.on_broken: BrokenHook = lambda peer: None

    def connect(self, peer: str, address: str, on_broken: BrokenHook | None = None) -> None:
        if on_broken is not None:
            self.on_broken = on_broken

    def disconnect(self, peer: str) -> None: ...

    def send(self, peer: str, frames: Sequence[Buffer]) -> bool:
        self.sent.append((peer, list(frames)))
        return not self.broken

    def messages(self, peer: str) -> list[Message]:
        return [unpack(frames)[1] for to, frames in self.sent if to == peer]

    def wire_bytes(self, peer: str) -> int:
        return sum(wire_bytes(frames) for to, frames in self.sent if to == peer)


class SendingDevice:
    """d0's sender with links to d1 and d2. `copies`: the neighbours' copies, where an allocator decides."""

    def __init__(self, rows: int = ROWS, copies: NeighbourCopies | None = None, **radio: Any) -> None:
        self.matrices: dict[tuple[BlockKey, str], Tensor] = {}
        self.reads: Counter[tuple[BlockKey, str]] = Counter()
        layout = SimpleNamespace(rows=lambda group: rows, rank=lambda group: RANK)
        learner = cast(Learner, SimpleNamespace(layout=layout, read=self._read))
        self.accounts, self.links, self.now = Accounts(), FakeLinks(), 0
        config = DeviceConfig.model_validate({"radio": radio})
        near = FixedChannel(LinkQuality(1 << 40, 1))
        spec = DeviceSpec("d0", config, "sim://d0", "sim://d0", (), "", channel=near)
        self.encoder = PayloadEncoder(spec, learner, copies=copies)
        shapes = {"early": Shape(rows, RANK)}
        self.sender = Sender(spec, shapes, cast(Links, self.links), self.accounts, 0)
        for peer in ("d1", "d2"):
            self.sender.connect(peer, f"sim://{peer}", 0)
        self.new_round()
        self._shape = rows, RANK

    def _read(self, key: BlockKey, group: str) -> Tensor:
        self.reads[key, group] += 1
        made = torch.randn(self._shape, generator=torch.Generator().manual_seed(len(self.matrices)))
        return self.matrices.setdefault((key, group), made)

    def new_round(self) -> None:
        self.sender.start_round(3, ("d0", "d1", "d2"), self.now)

    def perform(self, action: Publish) -> None:
        self.sender.publish(action, self.encoder.encode(action), 0)

    def publish(self, *blocks: BlockKey, to: str = "d1", version: int = 3, cause: str = "train") -> None:
        self.perform(
            Publish(to, 3, tuple((Part(block, "early"), version, cause) for block in blocks), MANIFEST)
        )

    def purge(self, block: BlockKey) -> None:
        self.sender.purge(block, "leave")
        self.encoder.purge(block)

    def drain(self) -> None:
        """Send all messages that may leave in this round."""
        while (due := self.sender.next_ns(self.now)) is not None:
            self.now = due
            self.sender.send_due(due)

    def link(self, peer: str = "d1") -> LinkAccount:
        return self.accounts.link(peer)


def headers_of(messages: Iterable[Message]) -> list[Update]:
    return [header for message in messages if isinstance(message, Updates) for header in message.headers]


def blocks_of(messages: list[Message]) -> list[str]:
    return [header.block for header in headers_of(messages)]


def received_matrices(device: SendingDevice, peer: str) -> list[Tensor]:
    """The matrices that a receiver makes of the messages that left."""
    parts, found = Reassembler(1 << 30), []
    for message, frames in ((unpack(frames)[1], frames) for to, frames in device.links.sent if to == peer):
        at = 0
        for header in headers_of([message]):
            data = memoryview(frames[1])[at : at + header.total]
            payload = parts.add_fragment("d0", header, data)
            at += header.total
            if payload is not None:
                found.append(decode(payload, header.codec, header.rows, header.rank))
    return found
