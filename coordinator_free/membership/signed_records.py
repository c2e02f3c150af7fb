"""Signed membership records: one record for each (device, incarnation).

An owner signs its record (Ed25519). A crash verdict can come from any member. It carries the owner's
signature of the record that it is about, so it cannot invent a device. Only an owner's Leave is a tombstone
(method 9).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from coordinator_free.identifiers import BlockKey
from coordinator_free.ranges import OPTIONAL_FIELDS, RECORD_FIELDS

Verify = Callable[[bytes, bytes, bytes], bool]  # public key, data, signature


class Status(IntEnum):
    """The status of an incarnation.

    In one incarnation a later status in this order replaces an earlier one.
    """

    ALIVE = 0
    CRASHED = 1  # verdict of other members; a new incarnation refutes it
    FINISHED = 2  # closed the last round of the run; still a member, but no longer probed
    RETIRED = 3  # left the network; its block stays
    WITHDRAWN = 4  # ended by its owner: it lost its slot or returned after a verdict
    LEFT = 5  # asked to be forgotten; a tombstone for the whole run


PRESENT = (Status.ALIVE, Status.FINISHED)


@dataclass(frozen=True, slots=True)
class Record:
    """One incarnation of a device. `since_round`: its first training round; < 0 while it joins.

    `lamport`: Lamport time of this record. `claimed`: Lamport time at which the slot was claimed; it decides
    conflicts about a slot. `public`, `signature`: the owner's Ed25519 key (32 bytes) and signature (64
    bytes). `mask_key`: the incarnation's public X25519 key (32 bytes) for masked reports; b"" without masks.
    """

    device: str
    incarnation: int
    address: str
    slot: int
    lamport: int
    claimed: int
    status: Status = Status.ALIVE
    since_round: int = -1
    public: bytes = b""
    signature: bytes = b""
    mask_key: bytes = b""

    @property
    def key(self) -> BlockKey:
        return BlockKey(self.device, self.incarnation)

    def signed_data(self) -> bytes:
        """The bytes that the owner signs.

        For a crash verdict: the bytes of the record that the verdict is about.
        """
        fields = (self.device, self.incarnation, self.address, self.slot, self.lamport, self.claimed)
        status = Status.ALIVE if self.status is Status.CRASHED else self.status
        masks = (self.mask_key,) if self.mask_key else ()
        return repr((*fields, int(status), self.since_round, self.public, *masks)).encode()

    def to_dict(self) -> dict[str, Any]:
        """All fields, but no `mask_key` where the record has none."""
        values = {name: getattr(self, name) for name in RECORD_FIELDS}
        given = {name: v for name, v in values.items() if v != b"" or name not in OPTIONAL_FIELDS}
        return {**given, "status": int(self.status)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Record:
        """Read `to_dict`.

        Raises ValueError for a missing or extra field, and for a value that is not in its range (ranges.py).
        """
        if set(data) | OPTIONAL_FIELDS != set(RECORD_FIELDS):
            raise ValueError("a membership record has missing or unknown fields")
        for name, value in data.items():
            if not RECORD_FIELDS[name](value):
                raise ValueError(f"{name} of a membership record is out of range")
        return cls(**{**data, "status": Status(data["status"])})


def is_genuine(record: Record, known: bytes | None, verify: Verify) -> bool:
    """Whether the owner signed this record, or the record that this verdict is about.

    known: the key that is bound to the device's id; None: none yet. A forged leave is refused here.
    """
    if known not in (None, record.public) or record.claimed > record.lamport:
        return False
    return verify(record.public, record.signed_data(), record.signature)
