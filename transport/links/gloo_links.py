"""torch.distributed behind the `Links` protocol: static membership, an address is a rank.

The reference that links over ZeroMQ are compared with, and the exact mean (`all_reduce_mean`) that gossip is.
All ranks start together, none joins later or comes back, and there are no keys: for one machine or a trusted
network. A message is a header of int64 (how many frames, their sizes; none: this end closes) and one tensor
of all the frames' bytes. Two threads a peer send and receive, because gloo's calls block; a crashed peer ends
its two.

Frames are CPU tensors and travel over gloo. `all_reduce_mean` uses the backend of the tensor's device: gloo
for CPU, NCCL for CUDA (one rank a GPU; tested in a world of one, tests/peers/test_gpu.py).
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

NAME_BYTES = 512  # a device's id is shorter
_FOR_EVER = timedelta(days=365)  # how long a receiver waits for the next message
log = logging.getLogger("unweft")


@dataclass(slots=True)
class _Peer:
    """Another rank: what is to be sent to it, and whether its connection still is."""

    rank: int
    device: str
    queue: deque[Sequence[Buffer]] = field(default_factory=deque)
    sending: bool = False
    broken: bool = False
    ending: bool = False  # the end is queued or sent: nothing may follow


class GlooLinks:
    """The links of rank `rank` of `world`. `store`: `file:///path` or `tcp://host:port` where all ranks meet.

    `start` takes until all ranks are there, `patience_s` at most. One per process: the process group is
    torch's global one.
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
        self._ranks: dict[str, int] = {}  # of those that are connected
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
            raise RuntimeError("links have an address once they are started")
        return f"gloo://{self.rank}"

    async def start(self, on_drop: DropHook | None = None) -> None:
        """Raises OSError when not all ranks are there in time. These links drop no message that arrives."""
        self._loop = asyncio.get_running_loop()
        try:
            names = await asyncio.to_thread(self._meet)
        except (RuntimeError, ValueError) as error:
            raise OSError(f"rank {self.rank} of {self.world} did not meet the others: {error}") from None
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
        """An address that is no other rank gives no link."""
        scheme, _, rank = address.partition("://")
        if scheme == "gloo" and rank.isdecimal() and int(rank) in self._peers:
            self._ranks[peer] = int(rank)
            if on_broken is not None:
                self._broken_hooks[peer] = on_broken
        else:
            log.warning("%s: no link to %r: %r is no rank", self.device, peer, address)

    def disconnect(self, peer: str) -> None:
        """What is queued still goes out."""
        self._ranks.pop(peer, None)
        self._broken_hooks.pop(peer, None)

    def send(self, peer: str, frames: Sequence[Buffer]) -> bool:
        """Raises ValueError for no, more or larger frames than the limits allow."""
        sizes = [len(frame) for frame in frames]
        if not 1 <= len(sizes) <= self._limits.max_frames or max(sizes) > self._limits.max_frame_bytes:
            raise ValueError("no receiver would take this message in")
        to = self._to(peer)
        with self._changed:
            if to is None or not self._takes(to):
                return False
            if to.broken or to.ending:  # nobody is told that at once: not who sends over ZeroMQ either
                self.unsent_bytes[peer] += wire_bytes(frames)
            else:
                to.queue.append(frames)
                self._changed.notify_all()
        return True

    async def wait_writable(self, peer: str, timeout_s: float) -> bool:
        to = self._to(peer)
        if to is None:
            return False
        return await self._until(lambda: self._takes(to), timeout_s) and self._to(peer) is to

    async def recv(self) -> Received:
        while not self._arrived:
            if self._closed:
                raise ConnectionError("the links are closed")
            if not self._started:
                raise RuntimeError("start() comes first")
            self._news.clear()
            await self._news.wait()
        rank, received = self._arrived.popleft()
        self._room[rank].release()
        return received

    async def flush(self, timeout_s: float) -> bool:
        return await self._until(self._idle, timeout_s)

    async def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean over all ranks, each of which has to call this; summed in fp64, of the dtype given.

        With NCCL the tensor is one on a GPU, and the sum is made there.
        """
        total = tensor.double()
        await asyncio.to_thread(lambda: dist.all_reduce(total))
        return (total / self.world).to(tensor.dtype)

    async def close(self) -> None:
        """The others close their ends in answer; of one that does not, a thread stays until it ends."""
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

    # -- in threads of their own -----------------------------------------------------------------------
    def _meet(self) -> list[str]:
        """The devices' names by rank, once all are there."""
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
                self._room[peer.rank].acquire()  # a slow reader stops its peers, as a full socket would
                received = Received(peer.device, frames, wire_bytes(frames))
                self._call(self._take, peer.rank, received)
        except RuntimeError as error:
            self._break(peer, error)
        with self._changed:
            self._end(peer)

    def _receive_one(self, rank: int) -> tuple[Buffer, ...] | None:
        """None: the other end closes. Raises RuntimeError if the connection is gone or makes no sense."""
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
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what, *args)

    # -- in the event loop -----------------------------------------------------------------------------
    def _take(self, rank: int, received: Received) -> None:
        self._arrived.append((rank, received))
        self._news.set()

    def _on_broken(self, rank: int) -> None:
        for name in [name for name, of in self._ranks.items() if of == rank]:
            if name in self._broken_hooks:
                self._broken_hooks[name](name)

    def _to(self, peer: str) -> _Peer | None:
        return self._peers.get(self._ranks.get(peer, -1))

    def _takes(self, peer: _Peer) -> bool:
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
