"""The books of received messages: drops, latencies, bytes that wait, and credit.

A sender names a message's departure and arrival itself, so this device bounds what it believes of them. Every
message counts once: as received, or as dropped under one reason. Every name that is neither a peer nor a
member shares one account.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from peers.protocol.actions import Action, Drop, Tell
from peers.protocol.state_machine import DeviceProtocol
from peers.runtime.arrivals import Arrivals
from transport.links.interface import Received
from transport.security.security_events import count_security_event
from transport.shaping.accounting import Accounts, LinkAccount
from transport.wire.limits import MAX_PAYLOAD, WINDOW_BYTES
from transport.wire.messages import Credit, Envelope, Hello, Manifest, Message, Updates

CREDIT_BYTES = WINDOW_BYTES // 2  # less than the window, so that a sender never waits for credit in vain
MAX_FLIGHT_NS = 60_000_000_000  # longest time from now to the arrival time that a message names
HEADER_ROOM = 1 << 12  # bytes: more than the header of one matrix and the framing
HELD_BYTES = WINDOW_BYTES + MAX_PAYLOAD + HEADER_ROOM  # of data that waits here, for each account
HELD_CONTROL_BYTES = 4 << 20  # of control messages that wait here, for each account
MESSAGE_BYTES = 512  # added for each control message: a small one takes more memory than its bytes
OF_A_ROUND = (Updates.__name__, Manifest.__name__)
OTHERS = ""  # the account of waiting bytes that all unknown sources share


class Held(NamedTuple):
    """The bytes of a message that waits for its arrival time. `data`: they are of an update."""

    account: str
    data: bool
    size: int


class ReceptionAccounts:
    """`security_events`: the counters of the links, by kind."""

    def __init__(self, protocol: DeviceProtocol, accounts: Accounts, security_events: Counter[str]) -> None:
        self._protocol, self._accounts = protocol, accounts
        self._security_events = security_events
        self._waiting: Counter[tuple[str, bool]] = Counter()  # bytes, by account; True: of data
        self._greeted_ns: dict[str, int] = {}  # departure of the last Hello of each peer
        self._received_bytes: int | None = None  # of the message counted last; None: it was dropped
        self._uncredited: Counter[str] = Counter()  # bytes of data received since the last credit, by peer
        self.arrivals = Arrivals()

    def knows(self, source: str) -> bool:
        """Whether a device is a peer. Anybody can invent other names."""
        return source in self._protocol.peers

    def forget_peer(self, peer: str) -> None:
        """Forget the credit and the hello of a peer whose link is closed."""
        self._uncredited.pop(peer, None)
        self._greeted_ns.pop(peer, None)

    # -- refused messages ------------------------------------------------------------------------------
    def refuse(self, received: Received, kind: str, why: str) -> None:
        """Drop a message that no honest device sends: count it as a security event and as a drop."""
        self.count_security_event(kind, f"message from {received.source!r} dropped: {why}")
        self._account_of(received.source).dropped(kind, received.wire_bytes)
        if len(received.frames) > 1 and received.source in self._protocol.peers:
            self._uncredited[received.source] += received.wire_bytes  # it is no longer in flight

    def refuse_received(self, source: str, reason: str) -> None:
        """The message that was counted last as received counts as dropped instead."""
        if self._received_bytes is not None:
            self._accounts.link(source).refuse_received(reason, self._received_bytes)
            self._received_bytes = None

    def count_security_event(self, kind: str, text: str) -> None:
        """Count and log a security event."""
        count_security_event(self._security_events, kind, text)

    # -- messages that wait ----------------------------------------------------------------------------
    def hold(self, received: Received, message: Message) -> Held | None:
        """Count the bytes of a message until its arrival time. None: too many wait, and it was refused."""
        data = isinstance(message, Updates)
        # anybody can invent source names, so all unknown sources share one account
        account = received.source if received.source in self._protocol.peers else OTHERS
        size = received.wire_bytes + (0 if data else MESSAGE_BYTES)
        waiting = self._waiting[account, data]
        if waiting + size > (HELD_BYTES if data else HELD_CONTROL_BYTES):
            self.refuse(received, "over_credit" if data else "overload", f"{waiting} bytes wait already")
            return None
        self._waiting[account, data] += size
        return Held(account, data, size)

    def release(self, held: Held) -> None:
        """The message has reached its arrival time."""
        account = held.account, held.data
        self._waiting[account] -= held.size
        if not self._waiting[account]:
            del self._waiting[account]

    # -- handled messages ------------------------------------------------------------------------------
    def count(self, now: int, envelope: Envelope, received: Received, actions: list[Action]) -> list[Action]:
        """Count a message as received or dropped; returns the actions without the drops."""
        link = self._account_of(received.source)
        drops = [action.reason for action in actions if isinstance(action, Drop)]
        self._received_bytes = None if drops else received.wire_bytes
        if drops:
            link.dropped(drops[0], received.wire_bytes)
        else:
            link.received(received.wire_bytes, now - envelope.depart_ns, self.longest_ns(now, envelope))
            if envelope.kind in OF_A_ROUND:
                self.arrivals.add(received.source, envelope.depart_ns, now, received.wire_bytes)
        return [action for action in actions if not isinstance(action, Drop)]

    def longest_ns(self, now: int, envelope: Envelope) -> int:
        """The longest latency that this device believes.

        The sender names the departure itself. No message of a peer departs before its Hello, and a Hello
        takes no longer than a message may.
        """
        if envelope.kind == Hello.__name__:
            depart_ns = min(now, max(envelope.depart_ns, now - MAX_FLIGHT_NS))
            if envelope.src in self._protocol.peers:
                self._greeted_ns[envelope.src] = depart_ns
            return MAX_FLIGHT_NS
        return now - self._greeted_ns.get(envelope.src, now - MAX_FLIGHT_NS)

    def credit(self, received: Received) -> list[Action]:
        """Tell a peer, at least CREDIT_BYTES at a time, how many more bytes of data may be in flight."""
        peer = received.source
        if peer not in self._protocol.peers:
            return []
        self._uncredited[peer] += received.wire_bytes
        if self._uncredited[peer] < CREDIT_BYTES:
            return []
        return [Tell(peer, Credit(self._uncredited.pop(peer)))]

    def _account_of(self, source: str) -> LinkAccount:
        known = source in self._protocol.peers or self._protocol.members.newest(source) is not None
        return self._accounts.source(source, known)
