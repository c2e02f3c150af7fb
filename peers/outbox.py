"""What goes out: matrices to parts, parts to frames, frames through the shaper to the links."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator_free.membership import Key
from coordinator_free.mixing import Part
from peers.actions import Publish
from peers.blocks import BlockKey
from peers.config import RadioConfig
from transport.accounting import Accounts
from transport.codec import encode, payload_bytes
from transport.links import Links
from transport.messages import Bye, Envelope, Message, Update, pack, stamp, wire_bytes
from transport.shaper import Outgoing, Shaper
from transport.token_bucket import Quota

if TYPE_CHECKING:
    from peers.learner import Learner

FRAME_BYTES = 1 << 16  # payload of one message; the bucket's depth is two of them
HEADER_BYTES = 256  # upper bound of an update's header and framing, for planning: ids of <= 64 characters
CURVE_BYTES = 80  # so much more where messages are encrypted


@dataclass(frozen=True, slots=True)
class _Payload:
    data: bytes
    crc: int


class Outbox:
    """The sending side of one device."""

    def __init__(
        self,
        device: str,
        radio: RadioConfig,
        learner: Learner,
        links: Links,
        accounts: Accounts,
        now_ns: int,
        curve: bool = False,  # whether the links encrypt, which the shaper has to pay for
    ) -> None:
        self.device, self._radio, self._curve = device, radio, curve
        self._header_bytes = HEADER_BYTES + curve * CURVE_BYTES
        self._learner, self._links, self._accounts = learner, links, accounts
        self.quota = Quota(radio.budget_bytes, radio.control_share)
        self._shaper = Shaper(radio.rate_Bps, FRAME_BYTES + self._header_bytes, self.quota, now_ns)
        self._wake = asyncio.Event()
        self._seq = 0
        self._idle = asyncio.Event()
        self._encoded: dict[Part, tuple[int, _Payload]] = {}

    def part_bytes(self, group: str) -> int:
        """What one (block, group) matrix costs on the wire, at most."""
        layout = self._learner.layout
        size = payload_bytes(self._radio.codec, layout.rows(group), layout.rank(group))
        return size + self._header_bytes * -(-size // FRAME_BYTES)

    def start_round(self) -> None:
        """A new quota. What the last one left in the queue goes on under this one, unless it is replaced."""
        self.quota.start_round()
        self._wake.set()

    def data_budget(self) -> int:
        return self.quota.data_left()

    def tell(self, peer: str, incarnation: int, message: Message) -> None:
        """Send a control message at once."""
        frames = pack(Envelope(self.device, incarnation), message)
        self._shaper.control(Outgoing(peer, "control", frames, wire_bytes(frames, self._curve)))
        self._wake.set()

    def encode(self, action: Publish) -> dict[Part, _Payload]:
        """The matrices of a round as bytes, encoded once for all neighbours. Runs in the learner's thread."""
        payloads = {}
        for part, version, _ in action.parts:
            done = self._encoded.get(part)
            if done is None or done[0] != version:
                data = encode(self._learner.read(BlockKey(*part.block), part.group), self._radio.codec)
                done = self._encoded[part] = (version, _Payload(data, zlib.crc32(data)))
            payloads[part] = done[1]
        return payloads

    def publish(self, action: Publish, payloads: dict[Part, _Payload], incarnation: int) -> None:
        """Queue a round's data for a neighbour and the manifest that closes it."""
        envelope = Envelope(self.device, incarnation)
        for part, version, cause in action.parts:
            payload = payloads[part]
            older = self._shaper.abandon_older(part, version, action.peer)
            if older.bytes:
                self._accounts.link(action.peer).abandoned("superseded", older.bytes)
            for offset in range(0, len(payload.data), FRAME_BYTES):
                piece = memoryview(payload.data)[offset : offset + FRAME_BYTES]
                header = self._header(part, version, action.round, cause, offset, payload)
                frames = pack(envelope, header, piece)
                size = wire_bytes(frames, self._curve)
                self._shaper.data(Outgoing(action.peer, cause, frames, size, len(piece), part, version))
        self._last(action.peer, pack(envelope, action.manifest))

    def farewell(self, peer: str, incarnation: int, reason: str) -> None:
        """The end of the stream to a peer, behind all that is queued; a leaver's data is not sent."""
        if reason == "leave":
            self._remove(lambda item: item.peer == peer and item.cause != "control", "leaving")
        self._last(peer, pack(Envelope(self.device, incarnation), Bye(reason)))

    def purge(self, block: Key, reason: str) -> None:
        """Deletion: nothing of the block stays queued or encoded."""
        self._remove(lambda item: isinstance(item.key, Part) and item.key.block == block, reason)
        self._encoded = {part: e for part, e in self._encoded.items() if part.block != block}

    def forget(self, peer: str) -> None:
        """A link that is given up: what is queued for it is not sent."""
        self._remove(lambda item: item.peer == peer, "gone")

    async def pace(self, now: Callable[[], int]) -> None:
        """Send what may leave, when it may; for ever."""
        while True:
            self._wake.clear()
            for item in self._shaper.pop(now()):
                self._send(item, now())
            if not self._shaper.pending_bytes():
                self._idle.set()
            due = self._shaper.next_ns(now())
            try:
                await asyncio.wait_for(self._wake.wait(), None if due is None else max(0, due - now()) / 1e9)
            except TimeoutError:
                continue

    async def drained(self, timeout_s: float) -> None:
        """Until nothing is queued, or for `timeout_s`."""
        self._idle.clear()
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)

    def _send(self, item: Outgoing, now_ns: int) -> None:
        self._seq += 1
        frames = [stamp(item.frames[0], self._seq, now_ns, now_ns), *item.frames[1:]]
        account = self._accounts.link(item.peer)
        if self._links.send(item.peer, frames):
            account.sent(item.cause, item.wire_bytes, item.payload_bytes, len(frames[0]))
        else:
            account.abandoned("no_link", item.wire_bytes)

    def _last(self, peer: str, frames: list[bytes | memoryview]) -> None:
        self._shaper.data(Outgoing(peer, "control", frames, wire_bytes(frames, self._curve)))
        self._wake.set()

    def _remove(self, doomed: Callable[[Outgoing], bool], reason: str) -> None:
        def counted(item: Outgoing) -> bool:
            if not doomed(item):
                return False
            self._accounts.link(item.peer).abandoned(reason, item.wire_bytes)
            return True

        self._shaper.remove(counted)

    def _header(
        self, part: Part, version: int, round_: int, cause: str, offset: int, payload: _Payload
    ) -> Update:
        layout = self._learner.layout
        return Update(
            block=part.block.device,
            block_incarnation=part.block.incarnation,
            group=part.group,
            version=version,
            round=round_,
            cause=cause,
            codec=self._radio.codec,
            rows=layout.rows(part.group),
            rank=layout.rank(part.group),
            offset=offset,
            total=len(payload.data),
            crc=payload.crc,
        )
