"""A message in the queues of the shaper, and the same message when it leaves."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from transport.shaping.round_budget import Priority

Buffer = bytes | memoryview


@dataclass(slots=True)  # not frozen, because construction is five times faster; never changed
class Outgoing:
    """One message as it goes on the wire: matrices, or control.

    `wire_bytes`: with headers and framing; `payload_bytes`: the tensor bytes among them. Of data: `content`,
    from which its sender makes the message again without some of its matrices. Of control: `priority`; `key`:
    a later message with the same key replaces this one while it waits; `origin`: the device whose statement
    it passes on, "" for an own one; `departs`: it tells of a departure and goes before other messages that
    wait.
    """

    peer: str
    cause: str  # train | correction | transfer | control
    frames: Sequence[Buffer]
    wire_bytes: int
    payload_bytes: int = 0
    content: object = None
    key: Hashable = None
    queued_round: int = 0
    priority: Priority = Priority.LIVENESS
    origin: str = ""
    departs: bool = False


@dataclass(slots=True)
class Departure(Outgoing):
    """A message that leaves now, with the departure of its last byte and its arrival.

    `lost`: it does not arrive.
    """

    depart_ns: int = 0
    arrive_ns: int = 0
    lost: bool = False
