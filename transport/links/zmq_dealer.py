"""One outgoing link: a DEALER that only sends, its handshake, and its waiting messages.

A DEALER accepts messages even if the peer is absent or refuses the connection. So a link with keys watches
its handshake: messages wait here until it has succeeded. After a refusal the link tries the next active key
(keys.py) or, with growing pauses, the same key again. libzmq reconnects by itself only after a lost
connection; after a refusal its session is dead.

A connection's identity is `device/nonce`, with a new nonce for each socket. So a new link never replaces an
earlier one that still delivers, and another device cannot replace it without guessing the nonce.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import zmq
from zmq.utils.monitor import parse_monitor_message

from transport.links.endpoints import is_socket_file
from transport.links.resolver import Resolver, TooManyNames
from transport.links.zmq_watch import Socket, Waiter, Watch
from transport.security.keys import NetworkKeys
from transport.security.zap import LOCAL_USER
from transport.wire.limits import MAX_PAYLOAD
from transport.wire.messages import Buffer
from transport.wire.packing import wire_bytes

Context = zmq.Context[Socket]
DONTWAIT, MORE_DONTWAIT = (
    int(zmq.DONTWAIT),
    int(zmq.DONTWAIT | zmq.SNDMORE),
)  # plain integers: pyzmq's enums are slow
ZERO_COPY_BYTES = 1 << 16  # frames of this size or more are passed without a copy
RETRY_S, RETRY_MAX_S = 0.1, 2.0  # pauses between handshakes
PUMP_S = 0.005  # pause between attempts to pass waiting messages to a full socket
FAILURES: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "auth",  # the peer does not admit our key
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "protocol",  # malformed, another mechanism or another key
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "no_detail",  # the peer closed; so does a peer with another key
}
HANDSHAKES = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | sum(FAILURES)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of every socket. libzmq can limit messages, not bytes: a link holds at most `high_water`
    messages at either end, in addition to the kernel's buffers. Credit (peers/runtime) limits the bytes in
    flight.
    """

    high_water: int = 1024  # messages
    max_frame_bytes: int = MAX_PAYLOAD
    max_frames: int = 4  # of one message
    heartbeat_ms: int = 2000
    heartbeat_timeout_ms: int = 10_000  # then a half-open TCP connection is replaced, or to a stopped process
    handshake_ms: int = 10_000
    reconnect_ms: int = 50
    reconnect_max_ms: int = 2000
    linger_ms: int = 2000  # longest time in which a closing link sends its remaining messages


def configure(socket: Socket, limits: Limits, endpoint: str) -> None:
    """Set the options that both ends of a link share.

    A link of socket files has no heartbeat: the kernel reports the end of the process behind a file at once.
    """
    beats = not is_socket_file(endpoint)
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.SNDHWM, limits.high_water)
    socket.set(zmq.RCVHWM, limits.high_water)
    socket.set(zmq.HEARTBEAT_IVL, beats * limits.heartbeat_ms)
    socket.set(zmq.HEARTBEAT_TIMEOUT, beats * limits.heartbeat_timeout_ms)
    socket.set(zmq.HEARTBEAT_TTL, beats * limits.heartbeat_timeout_ms)
    socket.set(zmq.HANDSHAKE_IVL, limits.handshake_ms)
    socket.set(
        zmq.IPV6, int("[" in endpoint)
    )  # otherwise names resolve as IPv4, which containers always have


class LastFrame:
    """The zmq frame of the last large buffer, because the same buffer is sent to several neighbours in turn.

    A shared frame costs one reference count in libzmq. A new one costs a turn of pyzmq's own thread when it
    is freed. The frame keeps its buffer alive, so it is dropped at the next turn of the loop.
    """

    def __init__(self) -> None:
        self._buffer: Buffer | None = None
        self._frame: zmq.Frame | None = None

    def of(self, buffer: Buffer) -> zmq.Frame:
        """The frame of a buffer, a new one if it is not the last buffer."""
        if self._frame is None or self._buffer is not buffer:
            self._buffer, self._frame = buffer, zmq.Frame(buffer, copy=False)
            asyncio.get_running_loop().call_soon(self._forget)
        return self._frame

    def _forget(self) -> None:
        self._buffer = self._frame = None


class Dealer:
    """A link to one peer.

    `report(kind, detail)`: called for a refused handshake. `broken()`: called when the connection is lost.
    """

    def __init__(
        self,
        device: str,
        address: str,
        limits: Limits,
        keys: NetworkKeys | None,
        report: Callable[[str, str], None],
        broken: Callable[[], None],
        large: LastFrame,
        resolver: Resolver,
    ) -> None:
        self._broken, self._large, self._resolver = broken, large, resolver
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
        self.up = keys is None  # without keys libzmq may hold the messages from the start

    def open(self, context: Context) -> None:
        """Connect with the present key.

        Raises ValueError for an invalid endpoint, or if no further socket is possible.
        """
        self._context = context
        try:
            self._socket = context.socket(zmq.DEALER)
            self._set_up(self._socket)
            self._watch = Watch(self._socket.get_monitor_socket(HANDSHAKES), self._on_event)
            self._resolver.resolve(self.address, partial(self._connect, self._socket))
        except TooManyNames:
            self._report("no_name", self.address)
            self._shut(0)  # the next message tries again
            return
        except zmq.ZMQError as error:
            self._shut(0)
            raise ValueError(f"cannot connect to {self.address!r}: {error}") from None
        if self._socket is None:
            raise ValueError(f"cannot connect to {self.address!r}: the name is unknown")

    def _connect(self, socket: Socket, endpoint: str | None) -> None:
        """Connect to the numeric endpoint. The socket keeps messages from before."""
        if socket is not self._socket:
            return  # closed, or made anew, in the meantime
        if endpoint is None:
            self._report("no_name", self.address)
            self._shut(0)  # the next message tries again
            return
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._shut(0)
            raise ValueError(f"cannot connect to {self.address!r}: {error}") from None

    def _set_up(self, socket: Socket) -> None:
        configure(socket, self._limits, self.address)
        socket.set(zmq.IDENTITY, f"{self.device}/{secrets.token_hex(8)}".encode())
        socket.set(zmq.RECONNECT_IVL, self._limits.reconnect_ms)
        socket.set(zmq.RECONNECT_IVL_MAX, self._limits.reconnect_max_ms)
        if self._keys is not None and is_socket_file(self.address):
            socket.plain_username = LOCAL_USER
            socket.plain_password = self._keys.local_password(self.address, self._key)
        elif self._keys is not None:
            mine = self._keys.client(self._key)
            socket.curve_serverkey = self._keys.server(self._key).public
            socket.curve_publickey, socket.curve_secretkey = mine.public, mine.secret

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Never blocks. Returns False if the link is full or no socket is available."""
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
        """Wait until no message waits for a handshake or for room in the socket."""
        while self._pending:
            await self._sent.wait([])

    def rekey(self, keys: NetworkKeys) -> None:
        """Use another set of keys. A connection under a key that is still active continues."""
        before, self._keys = self._keys, keys
        assert before is not None, "a link without keys cannot get keys"
        secret = before.secrets[self._key]
        self._key = keys.secrets.index(secret) if secret in keys.secrets else 0
        if secret not in keys.secrets and self._socket is not None:
            self._remake()

    def close(self, linger_ms: int) -> int:
        """Close the link; the socket sends its messages within `linger_ms`.

        Returns the bytes that never reached the socket.
        """
        while self._pending and self._socket is not None and self._send_now(self._pending[0]):
            self._pending.popleft()
        lost = sum(wire_bytes(frames, self._keys is not None) for frames in self._pending)
        self._pending.clear()
        self._shut(linger_ms)
        return lost

    def reopen_in(self, context: Context) -> None:
        """After `close`: the next message opens the link again in this context."""
        self._context = context
        self.up = self._keys is None

    def _send_now(self, frames: Sequence[Buffer]) -> bool:
        socket, last = self._socket, frames[-1]
        assert socket is not None
        try:
            for frame in frames[:-1]:  # headers; only the first frame can fail for lack of room
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
        if self.up and self._pending:  # the socket is full
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
            return  # libzmq reconnects by itself
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
