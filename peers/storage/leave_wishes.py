"""Leaves on disk: the signed records with which a device asks to be forgotten (docs/membership.md).

A device that leaves writes its records to FILE in its folder before it tells anyone, and marks the file when
another device has confirmed them. So the wish outlives the process: the device says it again when it starts
again, and the testbed delivers it to other devices (DELIVERED in their folders).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Record, Status

FILE = "leave.json"
DELIVERED = "leaves.json"


@dataclass(frozen=True, slots=True)
class LeaveWish:
    """The records of one device that leaves. `confirmed`: another device has them."""

    records: tuple[Record, ...] = ()
    confirmed: bool = False

    @property
    def blocks(self) -> tuple[BlockKey, ...]:
        return tuple(record.key for record in self.records)


def write(folder: Path, records: Iterable[Record], confirmed: bool) -> None:
    """Write the wish of a device into its own folder."""
    _write(folder / FILE, {"confirmed": confirmed, "records": [to_json(record) for record in records]})


def read(folder: Path) -> LeaveWish:
    """The wish in the folder of a device. Empty if there is none, or if the file is damaged."""
    found = _read(folder / FILE)
    if not isinstance(found, dict):
        return LeaveWish()
    return LeaveWish(_records(found.get("records")), found.get("confirmed") is True)


def deliver(folder: Path, records: Iterable[Record]) -> None:
    """Write the wishes of other devices into the folder of a device, which reads them at a signal."""
    known = {record.key: record for record in [*delivered(folder), *records]}
    _write(folder / DELIVERED, [to_json(record) for _, record in sorted(known.items())])


def delivered(folder: Path) -> tuple[Record, ...]:
    """The wishes that were delivered to a device. The device verifies them as it verifies gossip."""
    return _records(_read(folder / DELIVERED))


def _write(path: Path, content: object) -> None:
    """Write and rename, so that no reader sees a partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _read(path: Path) -> object:
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def to_json(record: Record) -> dict[str, Any]:
    """A record for a file: the keys and the signature in hex."""
    return {name: v.hex() if isinstance(v, bytes) else v for name, v in record.to_dict().items()}


def _records(entries: object) -> tuple[Record, ...]:
    """The records of leaves. Entries that are none are left out."""
    found = []
    for entry in entries if isinstance(entries, list) else []:
        record = from_json(entry)
        if record is not None and record.status is Status.LEFT:
            found.append(record)
    return tuple(found)


def from_json(entry: Any) -> Record | None:
    """Read `to_json`. None for anything else."""
    try:
        names = [name for name in ("public", "signature", "mask_key") if name in entry]
        binary = {name: bytes.fromhex(entry[name]) for name in names}
        return Record.from_dict({**entry, **binary})
    except (ValueError, TypeError, KeyError):
        return None
