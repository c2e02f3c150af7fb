"""torch.distributed with the `Links` protocol: static membership; an address is a rank.

A reference for comparisons with the ZeroMQ links, and the exact mean (`all_reduce_mean`) for comparisons with
gossip. All ranks start together, no rank joins later or returns, and there are no keys: for one machine or a
trusted network. A message is a header of int64 (number of frames, their sizes; 0 frames: this end closes) and
one tensor with the bytes of all frames. Two threads for each peer send and receive, because gloo's calls
block; the threads of a crashed peer end.

Frames are CPU tensors and travel over gloo. `all_reduce_mean` uses the backend of the tensor's device: gloo
for CPU, NCCL for CUDA (one rank per GPU; tested in a world of one, tests/peers/learning/test_gpu.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from transport.links.interface import BrokenHook, DropHook, Received
from transport.links.zmq_dealer import Limits
from transport.wire.messages import Buffer
from transport.wire.packing import wire_bytes

NAME_BYTES = 512  # every device id is shorter
_FOR_EVER = timedelta(days=365)  # timeout of a receiver
log = logging.getLogger("unweft")


@dataclass(slots=True)
class _Peer:
    """Another rank: its queue of messages and the state of its connection."""

    rank: int
    device: str
    queue: deque[Sequence[Buffer]] = field(default_factory=deque)
    sending: bool = False
    broken: bool = False
    ending: bool = False  # the end is queued or sent; no message may follow


class GlooLinks:
    """The links of rank `rank` of `world`. `store`: `file:///path` or `tcp://host:port` where all ranks meet.

    `start` waits for all ranks, at most `patience_s`. One instance per process, because torch's process group
    is global.
    """

    def __init__(
        self,
        device: str,
        rank: int,
        world: int,
        store: str,
        limits: Limits | None = None,
        patience_s: float = 60.0,
    ) -> None:
        self.device, self.rank, self.world = device, rank, world
        self.security_events: Counter[str] = Counter()
        self.unsent_bytes: Counter[str] = Counter()
        self._store, self._limits, self._patience_s = store, limits or Limits(), patience_s
        self._peers: dict[int, _Peer] = {}
        self._ranks: dict[str, int] = {}  # by device; connected peers only
        self._broken_hooks: dict[str, BrokenHook] = {}
        self._changed = threading.Condition()  # guards the peers' queues
        self._room = {r: threading.Semaphore(self._limits.high_water) for r in range(world)}
        self._arrived: deque[tuple[int, Received]] = deque()
        self._news = asyncio.Event()
        self._threads: list[threading.Thread] = []
        self._started = self._closed = False

    @property
    def address(self) -> str:
        if not self._started:
            raise RuntimeError("links have an address only after start()")
        return f"gloo://{self.rank}"

    async def start(self, on_drop: DropHook | None = None) -> None:
        """Raises OSError if not all ranks are present in time. These links drop no message that arrives."""
        self._loop = asyncio.get_running_loop()
        try:
            names = await asyncio.to_thread(self._rendezvous)
        except (RuntimeError, ValueError) as error:
            raise OSError(f"rank {self.rank} of {self.world} did not find the other ranks: {error}") from None
        self._started = True
        for rank, device in enumerate(names):
            if rank != self.rank:
                peer = self._peers[rank] = _Peer(rank, device)
                self._threads += [
                    threading.Thread(target=work, args=(peer,), name=f"gloo {what} {rank}", daemon=True)
                    for what, work in (("to", self._send_all), ("from", self._receive_all))
                ]
        for thread in self._threads:
            thread.start()

    def connect(self, peer: str, address: str, on_broken: BrokenHook | None = None) -> None:
        """An address that is not another rank gives no link."""
        scheme, _, rank = address.partition("://")
        if scheme == "gloo" and rank.isdecimal() and int(rank) in self._peers:
            self._ranks[peer] = int(rank)
            if on_broken is not None:
                self._broken_hooks[peer] = on_broken
        else:
            log.warning("%s: no link to %r: %r is not another rank", self.device, peer, address)

    def disconnect(self, peer: str) -> None:
        """Queued messages are still sent."""
        self._ranks.pop(peer, None)
        self._broken_hooks.pop(peer, None)

    def send(self, peer: str, frames: Sequence[Buffer]) -> bool:
        """Raises ValueError if the number or the size of the frames is outside the limits."""
        sizes = [len(frame) for frame in frames]
        if not 1 <= len(sizes) <= self._limits.max_frames or max(sizes) > self._limits.max_frame_bytes:
            raise ValueError("the number or the size of the frames is outside the limits")
        to = self._to(peer)
        with self._changed:
            if to is None or not self._has_room(to):
                return False
            if to.broken or to.ending:  # accepted like by ZeroMQ, which also reports a lost peer late
                self.unsent_bytes[peer] += wire_bytes(frames)
            else:
                to.queue.append(frames)
                self._changed.notify_all()
        return True

    async def wait_writable(self, peer: str, timeout_s: float) -> bool:
        to = self._to(peer)
        if to is None:
            return False
        return await self._until(lambda: self._has_room(to), timeout_s) and self._to(peer) is to

    async def recv(self) -> Received:
        while not self._arrived:
            if self._closed:
                raise ConnectionError("the links are closed")
            if not self._started:
                raise RuntimeError("call start() before recv()")
            self._news.clear()
            await self._news.wait()
        rank, received = self._arrived.popleft()
        self._room[rank].release()
        return received

    def signer(self, device: str) -> bytes | None:
        return None

    async def flush(self, timeout_s: float) -> bool:
        return await self._until(self._idle, timeout_s)

    async def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean over all ranks, summed in fp64, in the dtype and shape of `tensor`.

        Every rank must call this.

        With NCCL the tensor is on a GPU, and the sum is computed there.
        """
        total = tensor.double()
        await asyncio.to_thread(lambda: dist.all_reduce(total))
        return (total / self.world).to(tensor.dtype)

    async def close(self) -> None:
        """The other ranks close their ends in response.

        A thread of a rank that does not stays until that rank ends.
        """
        if self._closed:
            return
        self._closed = True
        self._news.set()
        if not self._started:
            return
        with self._changed:
            for peer in self._peers.values():
                self._end(peer)
        patience_s = self._limits.linger_ms / 1000
        await self._until(self._idle, patience_s)
        await asyncio.to_thread(self._join, patience_s)
        for peer in self._peers.values():
            self._count_unsent(peer)
        dist.destroy_process_group()

    # -- code of other threads -------------------------------------------------------------------------
    def _rendezvous(self) -> list[str]:
        """Join the process group. Returns the device ids by rank."""
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(
            backend,
            init_method=self._store,
            rank=self.rank,
            world_size=self.world,
            timeout=timedelta(seconds=self._patience_s),
        )
        mine = torch.tensor(list(self.device.encode().ljust(NAME_BYTES)), dtype=torch.uint8)
        names = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(names, mine)
        return [bytes(name.tolist()).decode().rstrip() for name in names]

    def _join(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _send_all(self, peer: _Peer) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: peer.queue or peer.broken)
                if peer.broken:
                    return
                frames, peer.sending = peer.queue.popleft(), True
                self._changed.notify_all()
            try:
                self._send_one(peer.rank, frames)
            except RuntimeError as error:
                self._break(peer, error)
            with self._changed:
                peer.sending = False
                self._changed.notify_all()
            if not frames:
                return

    def _send_one(self, rank: int, frames: Sequence[Buffer]) -> None:
        header = torch.zeros(1 + self._limits.max_frames, dtype=torch.int64)
        header[0] = len(frames)
        header[1 : 1 + len(frames)] = torch.tensor([len(frame) for frame in frames], dtype=torch.int64)
        dist.send(header, rank)
        body = bytearray().join(frames)
        if body:
            dist.send(torch.frombuffer(body, dtype=torch.uint8), rank)

    def _receive_all(self, peer: _Peer) -> None:
        try:
            while (frames := self._receive_one(peer.rank)) is not None:
                self._room[peer.rank].acquire()  # a slow reader stops its peers, as a full socket does
                received = Received(peer.device, frames, wire_bytes(frames))
                self._call(self._enqueue_received, peer.rank, received)
        except RuntimeError as error:
            self._break(peer, error)
        with self._changed:
            self._end(peer)

    def _receive_one(self, rank: int) -> tuple[Buffer, ...] | None:
        """One message; None if the other end closes.

        Raises RuntimeError for a lost connection or a malformed header.
        """
        header = torch.zeros(1 + self._limits.max_frames, dtype=torch.int64)
        _received(header, rank)
        count, *sizes = header.tolist()
        if count == 0:
            return None
        fits = 0 < count <= self._limits.max_frames
        if not fits or min(sizes) < 0 or max(sizes) > self._limits.max_frame_bytes:
            self.security_events["malformed"] += 1
            raise RuntimeError(f"{count} frames of {sizes} bytes")
        body = bytearray(sum(sizes[:count]))
        if body:
            _received(torch.frombuffer(body, dtype=torch.uint8), rank)
        view, frames = memoryview(body), []
        for size in sizes[:count]:
            frames.append(view[:size])
            view = view[size:]
        return tuple(frames)

    def _break(self, peer: _Peer, error: Exception) -> None:
        with self._changed:
            peer.broken = True
            self._changed.notify_all()
        if not self._closed:
            log.warning("%s: the connection with %s is lost: %s", self.device, peer.device, error)
        self._call(self._on_broken, peer.rank)

    def _call(self, what: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may have ended
            self._loop.call_soon_threadsafe(what, *args)

    # -- code of the event loop ------------------------------------------------------------------------
    def _enqueue_received(self, rank: int, received: Received) -> None:
        self._arrived.append((rank, received))
        self._news.set()

    def _on_broken(self, rank: int) -> None:
        for name in [name for name, of in self._ranks.items() if of == rank]:
            if name in self._broken_hooks:
                self._broken_hooks[name](name)

    def _to(self, peer: str) -> _Peer | None:
        return self._peers.get(self._ranks.get(peer, -1))

    def _has_room(self, peer: _Peer) -> bool:
        return peer.broken or peer.ending or len(peer.queue) < self._limits.high_water

    def _end(self, peer: _Peer) -> None:
        """Queue the end of the stream to a peer, once."""
        if not peer.ending:
            peer.ending = True
            peer.queue.append(())
            self._changed.notify_all()

    def _idle(self) -> bool:
        return all(peer.broken or not (peer.queue or peer.sending) for peer in self._peers.values())

    async def _until(self, true: Callable[[], bool], timeout_s: float) -> bool:
        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(true, timeout_s)

        return await asyncio.to_thread(wait)

    def _count_unsent(self, peer: _Peer) -> None:
        lost = sum(wire_bytes(frames) for frames in peer.queue)
        if lost:
            self.unsent_bytes[peer.device] += lost


def _received(tensor: Tensor, rank: int) -> None:
    work = dist.irecv(tensor, rank)
    assert work is not None
    work.wait(_FOR_EVER)
