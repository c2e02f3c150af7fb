"""The ends of a link that `unweft bench transport` compares, each in a process of its own.

A sender sends `count` tensors of `size` bytes at full speed and returns its start time. A receiver returns
the time of the last tensor. Times are monotonic ns. Frames carry FRAME_BYTES of payload, as in a device.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from datetime import timedelta
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
import zmq

from peers.runtime.reception_accounts import CREDIT_BYTES
from transport.links.malloc import keep_freed_memory
from transport.links.zmq_links import ZmqLinks
from transport.security.keys import NetworkKeys
from transport.wire.checksum import xxh3
from transport.wire.fragments import Reassembler, split
from transport.wire.limits import FRAME_BYTES, WINDOW_BYTES
from transport.wire.messages import Buffer, Credit, Envelope, Update, Updates
from transport.wire.packing import pack, pack_fragments, stamp, unpack
from transport.wire.tensor_codec import decode, encode_view

LISTEN = "tcp://127.0.0.1:0"
PATIENCE_S = 30.0
Result = TypeVar("Result")
RANK = 8
HEADER = bytes(80)  # header of the raw frames, as long as the header of an update


class Checks(NamedTuple):
    """The optional checks of the receiver. Unpacking always checks sizes."""

    checksum: bool = True
    finite: bool = True


class Arrived(NamedTuple):
    """The time of the last tensor, and the bytes of all on the wire with headers and framing."""

    at_ns: int
    wire_bytes: int = 0


class RawEnd:
    """Bare pyzmq: sends one buffer repeatedly without copies, and receives frames without decoding."""

    def __init__(self, keys: NetworkKeys | None) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbox, self._out = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        if keys is not None:
            server, client = keys.server(), keys.client()
            self._inbox.curve_server = True
            self._inbox.curve_publickey, self._inbox.curve_secretkey = server.public, server.secret
            self._out.curve_serverkey = server.public
            self._out.curve_publickey, self._out.curve_secretkey = client.public, client.secret

    def bind(self) -> str:
        self._inbox.bind(LISTEN)
        return self._inbox.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def connect(self, address: str) -> None:
        self._out.connect(address)

    def send(self, size: int, count: int) -> int:
        parts = split(bytes(size), FRAME_BYTES)
        start = time.monotonic_ns()
        for part in islice(cycle(parts), count * len(parts)):
            self._out.send_multipart((HEADER, part), copy=False)
        return start

    def receive(self, size: int, count: int) -> Arrived:
        for _ in range(count * -(-size // FRAME_BYTES)):
            self._inbox.recv_multipart(copy=False)
        return Arrived(time.monotonic_ns())


class LinksEnd:
    """The path of a device's tensors: encode, split, pack, ZmqLinks; unpack, Reassembler, decode, credit.

    The event loop also runs between calls, as in a device, so that handshakes and waiting sends continue.
    """

    def __init__(self, name: str, peer: str, keys: NetworkKeys | None, checks: Checks) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self._name, self._peer, self._keys, self._checks = name, peer, keys, checks
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._parts = Reassembler(1 << 30)
        self._in_flight = self._taken = 0

    def _run(self, call: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def bind(self) -> str:
        return self._run(self._bind())

    async def _bind(self) -> str:
        self._links = ZmqLinks(self._name, LISTEN, self._keys)
        await self._links.start()
        return self._links.address

    def connect(self, address: str) -> None:
        self._run(self._connect(address))

    async def _connect(self, address: str) -> None:
        self._links.connect(self._peer, address)

    def send(self, size: int, count: int) -> int:
        return self._run(self._send(torch.randn(size // 4 // RANK, RANK), size, count))

    async def _send(self, matrix: torch.Tensor, size: int, count: int) -> int:
        start = time.monotonic_ns()
        envelope = Envelope(self._name, 0)
        for version in range(count):
            payload = encode_view(matrix, "fp32", finite=self._checks.finite)
            checksum = xxh3(payload) if self._checks.checksum else None
            shape = (*matrix.shape, 0, size, checksum)
            header = Update(self._name, 0, "early", version, version, "train", "fp32", *shape)
            for frames in pack_fragments(envelope, header, payload, FRAME_BYTES):
                await self._put(*frames)
        return start

    async def _put(self, header: Buffer, part: Buffer) -> None:
        while self._in_flight >= WINDOW_BYTES:
            _, credit = unpack((await self._links.recv()).frames)
            assert isinstance(credit, Credit)
            self._in_flight -= credit.bytes
        self._in_flight += len(part)
        frames = (stamp(header, 0, time.monotonic_ns(), 0), part)
        while not self._links.send(self._peer, frames):
            if not await self._links.wait_writable(self._peer, PATIENCE_S):
                raise TimeoutError("the receiver accepts no messages")

    def receive(self, size: int, count: int) -> Arrived:
        return self._run(self._receive(count))

    async def _receive(self, count: int) -> Arrived:
        wire = 0
        while count:
            received = await self._links.recv()
            wire += received.wire_bytes
            envelope, message = unpack(received.frames)
            assert isinstance(message, Updates)
            (update,) = message.headers
            self._credit(len(received.frames[1]))
            payload = self._parts.add_fragment(envelope.src, update, received.frames[1])
            if payload is not None:
                shape = (update.rows, update.rank)
                decode(payload, update.codec, *shape, finite=self._checks.finite, owned=True)
                count -= 1
        return Arrived(time.monotonic_ns(), wire)

    def _credit(self, size: int) -> None:
        self._taken += size
        if self._taken >= CREDIT_BYTES:
            self._links.send(self._peer, pack(Envelope(self._name, 0), Credit(self._taken)))
            self._taken = 0


class GlooEnd:
    """Send and receive of whole tensors by torch.distributed."""

    def __init__(self, rank: int, store: Path) -> None:
        torch.set_num_threads(1)
        self._rank, self._store = rank, store

    def open(self) -> None:
        where = f"file://{self._store}"
        patience = timedelta(seconds=PATIENCE_S)
        dist.init_process_group("gloo", init_method=where, rank=self._rank, world_size=2, timeout=patience)

    def send(self, size: int, count: int) -> int:
        tensor = torch.randn(size // 4)
        start = time.monotonic_ns()
        for _ in range(count):
            dist.send(tensor, 1)
        return start

    def receive(self, size: int, count: int) -> Arrived:
        tensor = torch.empty(size // 4)
        for _ in range(count):
            dist.recv(tensor, 0)
        return Arrived(time.monotonic_ns())
