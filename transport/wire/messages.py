"""What devices say to each other: one class for each kind of message (how they travel: messages.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

Buffer = bytes | memoryview

Item = tuple[str, int, str, int, str]  # block's device, incarnation, group, version, status
Wish = tuple[str, int, str, int]  # block's device, incarnation, group, version held


class Envelope(NamedTuple):
    """Who sent a message and when (ns of the sender's clock). `kind`: filled in by `unpack`."""

    src: str
    src_incarnation: int
    seq: int = 0
    depart_ns: int = 0
    arrive_ns: int = 0
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message on a connection: who I am, where I listen, which bases I use."""

    address: str
    fingerprint: dict[str, Any]
    reply: bool
    capabilities: list[str]
    round: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The other side's bases or identity do not fit; nothing more will be accepted from it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Gossip:
    """Membership records: small maps of scalars. `reply`: send me yours."""

    records: list[dict[str, Any]]
    reply: bool
    round: int


@dataclass(slots=True)  # the most frequent kind by far; frozen, it takes five times as long to make
class Update:
    """A part of an encoded (block, group) matrix; its bytes are in a frame of their own.

    They go from `offset` on in a payload of `total` bytes. `xxh3`: checksum of the whole payload; None
    where the link is authenticated.
    """

    block: str
    block_incarnation: int
    group: str
    version: int
    round: int
    cause: str
    codec: str
    rows: int
    rank: int
    offset: int
    total: int
    xxh3: int | None = None
    part: int = 0
    parts: int = 1
    signature: bytes | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The end of a round's data: what was sent, unchanged or withheld; what replaces other
    copies (peers/unlearning/handover_refit.py) was sent. `digest`: hash of the membership table."""

    round: int
    phase: str
    digest: bytes
    items: list[Item]


@dataclass(frozen=True, slots=True)
class Request:
    """A joiner asks for blocks."""

    items: list[Wish]
    round: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? `digest`: hash of the sender's membership table."""

    number: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """The one that the ping with this number was for is there."""

    number: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class PingRequest:
    """Ping another for me, and pass its ack on."""

    target: str
    number: int


@dataclass(frozen=True, slots=True)
class Nack:
    """I am there, but got no answer from the one that you asked me to ping."""

    number: int


@dataclass(frozen=True, slots=True)
class Suspect:
    """A device did not answer `accuser`. Its record of a later Lamport time refutes that."""

    device: str
    incarnation: int
    lamport: int
    accuser: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """Who holds which block no more: its device, its incarnation, who. `*`: everybody, as far as I know."""

    items: list[tuple[str, int, str]]


@dataclass(frozen=True, slots=True)
class Bye:
    """No more data comes from me. `last`: nor anything else."""

    reason: str
    last: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """Virtual clock, window `index`: because of me nothing happens anywhere before `next_ns` (windows.py).

    `round`: the last one that I have closed. `sent`: how many messages I have sent to you. `last`: I am gone.
    `life`: how many of my name have been before me.
    """

    index: int
    next_ns: int
    round: int
    sent: int
    last: bool
    life: int = 0


@dataclass(frozen=True, slots=True)
class Observed:
    """What a device has measured of its loss: float32, relayed as it is."""

    device: str
    incarnation: int
    epoch: int
    values: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Credit:
    """So many more bytes may be in flight to me."""

    bytes: int


@dataclass(frozen=True, slots=True)
class Stopping:
    """A device was told to stop, and asks whether all were; signed by it, and passed on by others."""

    device: str
    incarnation: int
    signature: bytes


Message = (
    Hello | Refuse | Gossip | Update | Manifest | Request | Ping | Bye | Window | Credit | Observed
    | Stopping | Ack | PingRequest | Nack | Suspect | Deleted
)  # fmt: skip
