"""ZeroMQ links: one ROUTER inbox per device, which only receives, and one DEALER per neighbour, which only
sends.

`ROUTER_HANDOVER` lets a DEALER reconnect before the inbox has noticed that its connection broke; without it
the new connection is ignored. A restarted device has other identities (zmq_dealer.py).

An inbox reads its socket only when `recv` is called. So a slow receiver fills its own socket and then those
of the senders, whose `send` then returns False. libzmq cannot limit the number of frames of one message
before its last frame has arrived; with keys only a member can exploit that.

The inbox and the outgoing links have separate contexts. The context of the outgoing links can be terminated,
which is the only way to learn that libzmq has sent all its messages.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial

import zmq
from zmq.utils.monitor import parse_monitor_message

from transport.links.endpoints import check_private, is_socket_file, reachable_from
from transport.links.inbound import InboundConnections
from transport.links.interface import BrokenHook, DropHook, Received
from transport.links.resolver import Resolver
from transport.links.zmq_dealer import FAILURES, Context, Dealer, LastFrame, Limits, configure
from transport.links.zmq_watch import Socket, Waiter, Watch
from transport.security.keys import NetworkKeys
from transport.security.security_events import count_security_event
from transport.security.zap import DOMAIN, ENDPOINT, ZapHandler
from transport.shaping.accounting import MAX_PEERS, OTHERS
from transport.wire.messages import Buffer
from transport.wire.packing import wire_bytes

CURVE_OVERHEAD = 64  # added to MAXMSGSIZE: CURVE makes each frame 33 bytes longer (see wire_bytes)
CONNECTIONS: dict[int, str] = {zmq.EVENT_ACCEPTED: "accepted", zmq.EVENT_HANDSHAKE_SUCCEEDED: "established"}
DONTWAIT, EVENTS, POLLIN = (
    int(zmq.DONTWAIT),
    int(zmq.EVENTS),
    int(zmq.POLLIN),
)  # plain integers: pyzmq's enums are slow
MONITORED = sum(FAILURES) | sum(CONNECTIONS) | int(zmq.EVENT_DISCONNECTED)
FAIR = 32  # messages that `recv` returns between two turns of other tasks
REBIND_S = 2.0  # longest wait for a port; it is usually free within a millisecond of its unbinding


class ZmqLinks:
    """The links of one device (the `Links` protocol). Without `keys` nothing is encrypted."""

    def __init__(
        self, device: str, listen: str, keys: NetworkKeys | None = None, limits: Limits | None = None
    ) -> None:
        self.device, self.listen = device, listen
        self.security_events: Counter[str] = Counter()
        self.unsent_bytes: Counter[str] = Counter()
        # connections to the inbox; for some malformed ones (ZMTP 1.0) libzmq reports only "accepted"
        self.connections: Counter[str] = Counter()
        self._on_drop: DropHook | None = None
        self._limits = limits or Limits()
        self._keys = keys
        self._inside: Context = zmq.Context()
        self._outside: Context = zmq.Context()
        self._inboxes: list[
            tuple[Socket, Watch]
        ] = []  # the bound one last; an unbound one before it is only read until empty
        self._zap: Watch | None = None
        self._zap_handler: ZapHandler | None = None
        self._dealers: dict[str, Dealer] = {}
        self._waiter, self._large = Waiter(), LastFrame()
        self._address = ""
        self._inbound, self._resolver = InboundConnections(), Resolver()
        self._handed_on = 0
        self._unsent_links: Counter[str] = Counter()  # bounds the lines of the log, as of security events
        self._closed = False

    @property
    def address(self) -> str:
        if not self._address:
            raise RuntimeError("links have an address only after start()")
        return self._address

    async def start(self, on_drop: DropHook | None = None) -> None:
        """Bind the inbox. Raises OSError (with the endpoint in it) if that is not possible, or if other users
        may enter the folder of a socket file."""
        self._on_drop = on_drop
        if is_socket_file(self.listen):
            check_private(self.listen)
        if self._keys is not None:
            self._zap_handler = ZapHandler(self._keys, self.listen if is_socket_file(self.listen) else None)
            zap = self._inside.socket(zmq.REP)
            zap.bind(ENDPOINT)  # before the inbox, so that every connection is authenticated
            self._zap = Watch(zap, lambda frames: self._answer_zap(zap, frames))
        try:
            self._bind(self.listen)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"cannot listen on {self.listen}: {error}") from None
        self._address = _text(self._inboxes[0][0].get(zmq.LAST_ENDPOINT))

    def connect(self, peer: str, address: str, on_broken: BrokenHook | None = None) -> None:
        """An invalid address, one of another scheme, or a socket file of another folder gives no link: the
        address may come from anyone."""
        if peer in self._dealers:
            if self._dealers[peer].address == address:
                return
            self.disconnect(peer)
        broken = partial(on_broken or _ignore, peer)
        how = self._limits, self._keys, self._refused_by_peer, broken, self._large, self._resolver
        dealer = Dealer(self.device, address, *how)
        try:
            if not reachable_from(self.listen, address):
                raise ValueError(f"{address!r} has not the scheme, or not the folder, of {self.listen!r}")
            dealer.open(self._outside)
        except ValueError as error:
            self._count_event("bad_address", f"no link to {peer!r}: {error}")
            return
        self._dealers[peer] = dealer

    def disconnect(self, peer: str) -> None:
        dealer = self._dealers.pop(peer, None)
        if dealer is not None:
            self._unsent(peer, dealer.close(self._limits.linger_ms))

    def send(self, peer: str, frames: Sequence[Buffer]) -> bool:
        dealer = self._dealers.get(peer)
        return dealer is not None and dealer.send(frames)

    async def wait_writable(self, peer: str, timeout_s: float) -> bool:
        dealer = self._dealers.get(peer)
        if dealer is None:
            return False
        try:
            await asyncio.wait_for(dealer.wait_writable(), timeout_s)
        except TimeoutError:
            return False
        return self._dealers.get(peer) is dealer

    async def recv(self) -> Received:
        while True:
            if self._closed:
                raise ConnectionError("the links are closed")
            if not self._inboxes:
                raise RuntimeError("call start() before recv()")
            received = self._next_message()
            if received is not None:
                self._handed_on += 1
                if self._handed_on % FAIR == 0:
                    await asyncio.sleep(0)
                return received
            await self._waiter.wait([router for router, _ in self._inboxes])

    async def use_keys(self, keys: NetworkKeys) -> None:
        """Apply the next step of a rotation, or another allow-list (keys.py).

        Raises ValueError for links without keys, and OSError if the inbox cannot be bound again under a new
        primary key.
        """
        if self._keys is None or self._zap_handler is None:
            raise ValueError("links that were started without keys cannot get keys")
        primary = self._keys.server()
        self._keys = self._zap_handler.keys = keys
        for dealer in self._dealers.values():
            dealer.rekey(keys)
        if keys.server() != primary:
            await self._rebind()

    def signer(self, device: str) -> bytes | None:
        return None if self._keys is None else self._keys.signer(device)

    async def flush(self, timeout_s: float) -> bool:
        """Only a terminated context of libzmq reports that it is empty.

        Links open again with their next message.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        waiting = [asyncio.ensure_future(d.wait_sent()) for d in self._dealers.values()]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout_s)
            for task in late:
                task.cancel()
        linger_ms = max(0, round(1000 * (deadline - loop.time())))
        lost = sum(self._unsent(peer, dealer.close(linger_ms)) for peer, dealer in self._dealers.items())
        ending, self._outside = self._outside, zmq.Context()
        for dealer in self._dealers.values():
            dealer.reopen_in(self._outside)
        await asyncio.to_thread(ending.term)
        return not lost and loop.time() < deadline

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._waiter.wake()
        for peer in list(self._dealers):
            self.disconnect(peer)
        self._resolver.close()
        await asyncio.to_thread(self._outside.term)
        while self._inboxes:
            _shut(*self._inboxes.pop())
        if self._zap is not None:
            self._zap.close()
        self._inside.term()

    # -- the inbox -------------------------------------------------------------------------------------
    def _bind(self, endpoint: str) -> None:
        router = self._inside.socket(zmq.ROUTER)
        configure(router, self._limits, endpoint)
        router.set(zmq.LINGER, self._limits.linger_ms)  # when unbound, it keeps its received messages
        router.set(zmq.ROUTER_HANDOVER, 1)
        router.set(zmq.MAXMSGSIZE, self._limits.max_frame_bytes + CURVE_OVERHEAD)
        if self._keys is not None:
            self._authenticate(router, self._keys)
        watch = Watch(router.get_monitor_socket(MONITORED), self._on_event)
        try:
            router.bind(endpoint)
        except zmq.ZMQError:
            _shut(router, watch)
            raise
        self._inboxes.append((router, watch))

    def _authenticate(self, router: Socket, keys: NetworkKeys) -> None:
        """Admit clients with keys only: by CURVE, or by a password where a socket file is the endpoint."""
        router.set(zmq.ZAP_DOMAIN, DOMAIN)
        router.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
        if is_socket_file(self.listen):
            router.plain_server = True
            return
        pair = keys.server()
        router.curve_server = True
        router.curve_publickey, router.curve_secretkey = pair.public, pair.secret

    async def _rebind(self) -> None:
        """Serve the new primary key.

        Connections under the old one end; messages that they delivered can still be read.
        """
        self._waiter.wake()
        while len(self._inboxes) > 1:
            _shut(*self._inboxes.pop(0))
        old = self._inboxes[0][0]
        old.unbind(self.address)
        deadline = asyncio.get_running_loop().time() + REBIND_S
        while True:
            try:
                self._bind(self.address)
                break
            except zmq.ZMQError as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise OSError(error.errno, f"cannot listen on {self.address} again: {error}") from None
            old.get(zmq.EVENTS)  # libzmq closes its connections within calls on the socket
            await asyncio.sleep(0.001)  # libzmq's thread closes the old listener
        self._waiter.wake()

    def _next_message(self) -> Received | None:
        """The next valid message, or None if there is none now. Messages of an old socket come first."""
        for router, _ in self._inboxes:
            while (
                int(router.get(EVENTS)) & POLLIN
            ):  # cheaper than recv, whose exception costs ten times as much
                received = self._read_message(router)
                if received is not None:
                    return received
        return None

    def _read_message(self, router: Socket) -> Received | None:
        """One message, or None if it was dropped. libzmq delivers whole messages only."""
        identity = router.recv(DONTWAIT)
        frames: list[Buffer] = []
        curve, limit, excess, more = self._keys is not None, self._limits.max_frames, 0, True
        while more:  # a ROUTER delivers at least one frame after the identity
            part = router.recv(DONTWAIT, copy=False)
            more = part.more
            if len(frames) < limit:
                frames.append(part.buffer)
            else:
                excess += wire_bytes((part.buffer,), curve)
        source, size = _source(identity), wire_bytes(frames, curve) + excess
        if excess:
            self._drop_message(source, "malformed", size, f"more than {limit} frames")
            return None
        if self._keys is None or self._keys.allowed is None:
            return Received(source, tuple(frames), size)
        public = str(part.get("User-Id"))
        if not self._keys.binds(source, public):
            owner = self._keys.owner(public) or "nobody"
            self._drop_message(source, "unbound", size, f"its key belongs to {owner}")
            return None
        return Received(source, tuple(frames), size, user=source)

    def _drop_message(self, source: str, reason: str, size: int, why: str) -> None:
        self._count_event(reason, f"message from {source!r} dropped: {why}")
        if self._on_drop is not None:
            self._on_drop(source, reason, size)

    # -- security events -------------------------------------------------------------------------------
    def _answer_zap(self, zap: Socket, request: list[bytes]) -> None:
        assert self._zap_handler is not None
        zap.send_multipart(self._zap_handler.answer(request))

    def _on_event(self, frames: list[bytes]) -> None:
        parsed = parse_monitor_message(frames)
        event: int = parsed["event"]
        if event == zmq.EVENT_DISCONNECTED:
            self._inbound.end(parsed["value"])
        elif event == zmq.EVENT_ACCEPTED and not self._inbound.accept(parsed["value"]):
            self._count_event("inbox_full", "a connection to the inbox was one too many")
        elif event in CONNECTIONS:
            self.connections[CONNECTIONS[event]] += 1
        elif event in FAILURES:
            self._count_event(f"inbox_{FAILURES[event]}", "the handshake of a connection to the inbox failed")

    def _refused_by_peer(self, kind: str, address: str) -> None:
        self._count_event(f"link_{kind}", f"the handshake with {address} failed")

    def _count_event(self, kind: str, what: str) -> None:
        count_security_event(self.security_events, kind, f"{self.device}: {what}")

    def _unsent(self, peer: str, lost: int) -> int:
        if lost:
            known = peer in self.unsent_bytes or len(self.unsent_bytes) < MAX_PEERS
            self.unsent_bytes[peer if known else OTHERS] += lost
            why = "no handshake, or no room in the socket"
            text = f"{self.device}: {lost} bytes for {peer} were never sent: {why}"
            count_security_event(self._unsent_links, "unsent", text)
        return lost


def _ignore(peer: str) -> None:
    """Nobody wants to know that the connection is lost."""


def _shut(router: Socket, watch: Watch) -> None:
    router.disable_monitor()
    watch.close()
    router.close(linger=0)


@lru_cache(maxsize=1024)
def _source(identity: bytes) -> str:
    """The device id that a connection claims: the identity before its nonce; hex if it is not text."""
    try:
        text = identity.decode()
    except UnicodeDecodeError:
        return identity.hex()
    return text.rpartition("/")[0] or text


def _text(option: str | bytes | int) -> str:
    return option.rstrip(b"\0").decode() if isinstance(option, bytes) else str(option)
