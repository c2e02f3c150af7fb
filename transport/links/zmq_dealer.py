"""One outgoing link: a DEALER that only sends, its handshake, and what waits for it.

Sending succeeds whether or not the peer is there or lets us in, so a link with keys watches its handshake:
until it has succeeded, messages wait here, and a refusal leads to the next active key (keys.py) or, with
growing pauses, to another try. libzmq tries again by itself only when a connection broke; after a refusal
its session is dead.

A connection's identity is `device/nonce`, new for each socket: a link made anew never takes over, and so
never cuts off, the one before it that still delivers; nor can another device take it over without guessing
the nonce.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import parse_monitor_message

from transport.links.zmq_watch import Socket, Waiter, Watch
from transport.security.keys import NetworkKeys
from transport.wire.limits import MAX_PAYLOAD
from transport.wire.messages import Buffer
from transport.wire.packing import wire_bytes

Context = zmq.Context[Socket]
DONTWAIT, MORE_DONTWAIT = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)  # zmq's own are slow enums
ZERO_COPY_BYTES = 1 << 16  # frames from here on are handed over, not copied
RETRY_S, RETRY_MAX_S = 0.1, 2.0
PUMP_S = 0.005  # between tries to pass on what waited when the socket is full
FAILURES: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "auth",  # the peer does not admit our key
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "protocol",  # garbage, another mechanism, a message for another key
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "no_detail",  # the other side hung up; so does one with another key
}
HANDSHAKES = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | sum(FAILURES)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of every socket. libzmq can bound messages, not bytes: a link holds at most `high_water` of them
    at either end, beside the kernel's buffers. In-flight bytes are bounded above this, by credit."""

    high_water: int = 1024  # messages
    max_frame_bytes: int = MAX_PAYLOAD
    max_frames: int = 4  # of a message
    heartbeat_ms: int = 2000  # a half-open TCP connection is noticed ...
    heartbeat_timeout_ms: int = 10_000  # ... after this long and made anew; so is one to a stopped process
    handshake_ms: int = 10_000
    reconnect_ms: int = 50
    reconnect_max_ms: int = 2000
    linger_ms: int = 2000  # longest wait of a closing link for what it still holds


def configure(socket: Socket, limits: Limits, endpoint: str) -> None:
    """What both ends have in common."""
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.SNDHWM, limits.high_water)
    socket.set(zmq.RCVHWM, limits.high_water)
    socket.set(zmq.HEARTBEAT_IVL, limits.heartbeat_ms)
    socket.set(zmq.HEARTBEAT_TIMEOUT, limits.heartbeat_timeout_ms)
    socket.set(zmq.HEARTBEAT_TTL, limits.heartbeat_timeout_ms)
    socket.set(zmq.HANDSHAKE_IVL, limits.handshake_ms)
    socket.set(
        zmq.IPV6, int("[" in endpoint)
    )  # otherwise names resolve as IPv4, which containers always have


class LastFrame:
    """The zmq frame of the last large buffer: neighbours are sent the same one, one after the other.

    To share a frame costs a reference count in libzmq, to make one a turn of pyzmq's own thread when it is
    freed. It is kept no longer than until the loop turns, since it keeps the buffer too.
    """

    def __init__(self) -> None:
        self._buffer: Buffer | None = None
        self._frame: zmq.Frame | None = None

    def of(self, buffer: Buffer) -> zmq.Frame:
        if self._frame is None or self._buffer is not buffer:
            self._buffer, self._frame = buffer, zmq.Frame(buffer, copy=False)
            asyncio.get_running_loop().call_soon(self._forget)
        return self._frame

    def _forget(self) -> None:
        self._buffer = self._frame = None


class Dealer:
    """A link to one peer. `report(kind, detail)`: of refused handshakes; `broken()`: of a lost connection."""

    def __init__(
        self,
        device: str,
        address: str,
        limits: Limits,
        keys: NetworkKeys | None,
        report: Callable[[str, str], None],
        broken: Callable[[], None],
        large: LastFrame,
    ) -> None:
        self._broken, self._large = broken, large
        self.device, self.address, self._limits, self._keys, self._report = (
            device,
            address,
            limits,
            keys,
            report,
        )
        self._pending: deque[Sequence[Buffer]] = deque()
        self._waiter, self._sent = Waiter(), Waiter()
        self._key = self._failures = 0
        self._retry: asyncio.TimerHandle | None = None
        self._socket: Socket | None = None
        self._watch: Watch | None = None
        self.up = keys is None  # without keys there is nothing to try: libzmq may hold what waits

    def open(self, context: Context) -> None:
        """Connect, with the key whose turn it is. Raises ValueError for an endpoint that cannot be one, and
        where there are as many sockets as there may be."""
        self._context = context
        try:
            self._socket = context.socket(zmq.DEALER)
            self._set_up(self._socket)
            self._watch = Watch(self._socket.get_monitor_socket(HANDSHAKES), self._on_event)
            self._socket.connect(self.address)
        except zmq.ZMQError as error:
            self._shut(0)
            raise ValueError(f"cannot connect to {self.address!r}: {error}") from None

    def _set_up(self, socket: Socket) -> None:
        configure(socket, self._limits, self.address)
        socket.set(zmq.IDENTITY, f"{self.device}/{secrets.token_hex(8)}".encode())
        socket.set(zmq.RECONNECT_IVL, self._limits.reconnect_ms)
        socket.set(zmq.RECONNECT_IVL_MAX, self._limits.reconnect_max_ms)
        if self._keys is not None:
            mine = self._keys.client(self._key)
            socket.curve_serverkey = self._keys.server(self._key).public
            socket.curve_publickey, socket.curve_secretkey = mine.public, mine.secret

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Never blocks; False when the link holds all it may, or no socket is to be had."""
        if self._socket is None and not self._open_again():
            return False
        if self.up and not self._pending:
            return self._send_now(frames)
        if len(self._pending) >= self._limits.high_water:
            return False
        self._pending.append(frames)
        return True

    async def wait_writable(self) -> None:
        while not self._writable():
            await self._waiter.wait([self._socket] if self._socket is not None else [])

    async def wait_sent(self) -> None:
        """Until nothing waits for a handshake or for room in the socket."""
        while self._pending:
            await self._sent.wait([])

    def rekey(self, keys: NetworkKeys) -> None:
        """Another set of keys. A connection under a key that is still active goes on."""
        before, self._keys = self._keys, keys
        assert before is not None, "a link without keys cannot get some"
        secret = before.secrets[self._key]
        self._key = keys.secrets.index(secret) if secret in keys.secrets else 0
        if secret not in keys.secrets and self._socket is not None:
            self._remake()

    def close(self, linger_ms: int) -> int:
        """Give up; what the socket holds goes out within `linger_ms`. Returns the bytes it did not get."""
        while self._pending and self._socket is not None and self._send_now(self._pending[0]):
            self._pending.popleft()
        lost = sum(wire_bytes(frames, self._keys is not None) for frames in self._pending)
        self._pending.clear()
        self._shut(linger_ms)
        return lost

    def reopen_in(self, context: Context) -> None:
        """After `close`: the next message opens the link again, in this context."""
        self._context = context
        self.up = self._keys is None

    def _send_now(self, frames: Sequence[Buffer]) -> bool:
        socket, last = self._socket, frames[-1]
        assert socket is not None
        try:
            for frame in frames[:-1]:  # headers; only the first frame can find no room
                socket.send(frame, MORE_DONTWAIT)
            if len(last) < ZERO_COPY_BYTES:
                socket.send(last, DONTWAIT)
            else:
                socket.send(self._large.of(last), DONTWAIT, copy=False)
        except zmq.Again:
            return False
        return True

    def _send_pending(self) -> None:
        while self.up and self._pending and self._send_now(self._pending[0]):
            self._pending.popleft()
        if self.up and self._pending:  # the socket is full; its credit comes back in lumps
            asyncio.get_running_loop().call_later(PUMP_S, self._send_pending)
        self._wake()

    def _writable(self) -> bool:
        if self.up and not self._pending and self._socket is not None:
            return bool(int(self._socket.get(zmq.EVENTS)) & zmq.POLLOUT)
        return len(self._pending) < self._limits.high_water

    def _on_event(self, frames: list[bytes]) -> None:
        event = parse_monitor_message(frames)
        kind = event["event"]
        if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.up, self._failures = True, 0
            self._send_pending()
        elif kind == zmq.EVENT_DISCONNECTED:
            self.up = self._keys is None
            self._broken()
        elif kind in FAILURES:
            self._refused(kind)

    def _refused(self, kind: int) -> None:
        self._failures += 1
        self._report(FAILURES[kind], self.address)
        keys = len(self._keys.secrets) if self._keys is not None else 1
        if kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and keys == 1:
            return  # libzmq tries again by itself
        self._key = (self._key + 1) % keys
        again = max(0, self._failures - keys)
        delay_s = 0.0 if self._failures < keys else min(RETRY_S * 2 ** min(again, 10), RETRY_MAX_S)
        self._cancel_retry()
        self._retry = asyncio.get_running_loop().call_later(delay_s, self._remake)

    def _remake(self) -> None:
        self._shut(0)
        self.up = self._keys is None
        self._open_again()

    def _open_again(self) -> bool:
        try:
            self.open(self._context)
        except ValueError:
            self._report("no_socket", self.address)
        return self._socket is not None

    def _wake(self) -> None:
        self._waiter.wake()
        self._sent.wake()

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _shut(self, linger_ms: int) -> None:
        self._cancel_retry()
        self._wake()
        if self._socket is not None:
            self._socket.disable_monitor()
            if self._watch is not None:
                self._watch.close()
            self._socket.close(linger=linger_ms)
        self._socket = self._watch = None
