"""Signed membership records, and tables that hold them."""

from __future__ import annotations

from dataclasses import replace

from coordinator_free.membership.signed_records import Record, Status
from coordinator_free.membership.table import Membership
from tests.support.signatures import public, sign_as, table


def make(
    device: str, incarnation: int = 0, slot: int = 0, lamport: int = 1, status: Status = Status.ALIVE, **more
) -> Record:
    """A record as its owner would sign it."""
    fields = {"claimed": lamport, "since_round": 0, "public": public(device), **more}
    at = fields.pop("address", f"tcp://{device}")
    record = Record(device, incarnation, at, slot, lamport, status=status, **fields)
    return replace(record, signature=sign_as(device, record.signed_data()))


def filled(records: list[Record]) -> Membership:
    members = table()
    members.merge(records)
    return members
