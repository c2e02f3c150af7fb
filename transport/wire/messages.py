"""The messages between devices: one class for each type. packing.py converts them to bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

Buffer = bytes | memoryview

Item = tuple[str, int, str, int, str]  # block's device, incarnation, group, version, status
Wish = tuple[str, int, str, int]  # block's device, incarnation, group, version that the sender holds


class Envelope(NamedTuple):
    """The sender of a message and its times (ns of the sender's clock). `unpack` sets `kind`."""

    src: str
    src_incarnation: int
    seq: int = 0
    depart_ns: int = 0
    arrive_ns: int = 0
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message on a connection: the sender's address and the fingerprint of its bases.

    `known`: the names of the membership records that the sender has, NAME_BYTES each. The receiver sends the
    others.
    """

    address: str
    fingerprint: dict[str, Any]
    reply: bool
    capabilities: list[str]
    round: int
    known: bytes = b""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The receiver's bases or identity do not fit the sender's. The sender accepts nothing more from it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Gossip:
    """Membership records, as small maps of scalars. `reply`: asks for the receiver's records."""

    records: list[dict[str, Any]]
    reply: bool
    round: int


@dataclass(slots=True)  # not frozen: construction is five times faster, and this type is the most frequent
class Update:
    """The header of an encoded (block, group) matrix, or of a fragment of one, which starts at `offset`.

    `total`: bytes of the whole payload. `xxh3`: its checksum; None if the link is authenticated or on one
    machine.
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
    signature: bytes | None = None


@dataclass(frozen=True, slots=True)
class Updates:
    """Matrices for one receiver. Their payloads follow each other in a frame of their own.

    Either all of them are whole, or there is one, which is a fragment.
    """

    headers: list[Update]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The end of a round's data: the status of each part (sent, replaces, unchanged, similar or withheld).

    `similar`: the sender's copy is close to what the receiver makes of the version that it was sent last.
    `replaces` marks a part that its owner has refitted (peers/unlearning/handover_refit.py).
    `digest`: hash of the membership table.
    """

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
    """Asks whether the receiver is alive (SWIM). `digest`: hash of the sender's membership table."""

    number: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to the ping with this number."""

    number: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class PingRequest:
    """Asks the receiver to ping `target` and to pass on its ack (the ping-req of SWIM)."""

    target: str
    number: int


@dataclass(frozen=True, slots=True)
class Nack:
    """The helper is alive, but `target` did not answer in time (Lifeguard)."""

    number: int


@dataclass(frozen=True, slots=True)
class Suspect:
    """`accuser` got no answer from a device.

    A record of the device with a later Lamport time refutes this.
    """

    device: str
    incarnation: int
    lamport: int
    accuser: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """Devices that no longer hold a block: block's device, incarnation, device.

    `*`: all devices, as far as known.
    """

    items: list[tuple[str, int, str]]


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender sends no more data; with `last` no more messages at all."""

    reason: str
    last: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """Virtual clock, window `index`: the sender causes no event before `next_ns` (windows.py).

    `round`: the last round that the sender closed. `sent`: number of messages to the receiver. `last`: the
    sender ends. `life`: number of earlier processes of the sender's device.
    """

    index: int
    next_ns: int
    round: int
    sent: int
    last: bool
    life: int = 0


@dataclass(frozen=True, slots=True)
class Observed:
    """A device's measurements of its loss, relayed unchanged: float32 values.

    Masked: the digest of the cohort, then 64-bit numbers (coordinator_free/correction/masking.py).
    """

    device: str
    incarnation: int
    epoch: int
    values: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Inputs:
    """Second moments of the sender's module inputs in the bases of the receiver's block: float32 values.

    `device`, `incarnation`: the receiver's block (peers/learning/foreign_inputs.py).
    """

    device: str
    incarnation: int
    values: bytes


@dataclass(frozen=True, slots=True)
class Credit:
    """So many more bytes may be in flight to the sender."""

    bytes: int


@dataclass(frozen=True, slots=True)
class Transit:
    """The smallest receipt less departure (ns) of messages from the receiver of this one to its sender.

    It measures how far their clocks differ (peers/runtime/clock_differences.py).
    """

    lowest_ns: int


@dataclass(frozen=True, slots=True)
class Stopping:
    """A device was told to stop, and asks whether all devices were. `stays`: it was not told to stop.

    It is signed, and other devices pass it on.
    """

    device: str
    incarnation: int
    signature: bytes
    stays: bool = False


Message = (
    Hello | Refuse | Gossip | Updates | Manifest | Request | Ping | Bye | Window | Credit | Observed
    | Stopping | Ack | PingRequest | Nack | Suspect | Deleted | Inputs | Transit
)  # fmt: skip
