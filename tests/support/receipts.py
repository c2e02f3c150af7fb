"""Chains of receipts for tests: an honest one, and changes that a forger could make."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from coordinator_free.membership.signed_records import Record, Status
from peers.storage import leave_wishes, receipt_chain
from peers.storage.receipt_chain import PREFIX, SIGNATURE, ReceiptChain, canonical
from tests.support.membership_records import make
from transport.security.keys import DeviceIdentity

RUN = "a-run"
HASH = "ab" * 32


def identity(number: int, run: str = RUN) -> DeviceIdentity:
    """Always the same key for a number."""
    return DeviceIdentity.generate(bytes([number]) * 32).for_run(run)


OWNER, OTHER, LEAVER = identity(1), identity(2), identity(3)


def leave(device: str = "d2", signer: DeviceIdentity = LEAVER) -> dict[str, Any]:
    """The signed leave of a device, as a receipt quotes it."""
    record: Record = replace(make(device, 0, lamport=5), status=Status.LEFT, public=signer.public)
    return leave_wishes.to_json(replace(record, signature=signer.sign(record.signed_data())))


def chain(folder: Path, device: str = "d0", life: int = 0, signer: DeviceIdentity = OWNER) -> ReceiptChain:
    return ReceiptChain(folder, device, life, signer.run, signer.public, signer.sign)


def begin(written: ReceiptChain) -> None:
    written.append("begin", -1, 0.0, {"format": receipt_chain.FORMAT})


def deleted(written: ReceiptChain, **changes: Any) -> None:
    """The deletion of the block of d2, which left."""
    fields = {
        "block": "d2@0",
        "reason": "leave",
        "sha256_before": HASH,
        "sha256_after": HASH,
        "values": {"early": HASH},
        "leave": leave(),
        "members": {"d1": OTHER.public.hex()},
    }
    written.append("deleted", 3, 1.5, {**fields, **changes})


def end(written: ReceiptChain) -> None:
    written.append("end", 9, 4.0, {"reason": "finished", "blocks": ["d0@0"], "members": {}})


def write(folder: Path, device: str = "d0", signer: DeviceIdentity = OWNER) -> Path:
    """An honest chain of five receipts; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    written = chain(folder, device, signer=signer)
    begin(written)
    deleted(written)
    written.append("confirmed", 3, 1.6, {"block": "d2@0", "who": "d1"})
    export = {"adapter_sha256": HASH, "blocks": {"d0@0": HASH}, "members": {"d1": OTHER.public.hex()}}
    written.append("exported", 9, 3.9, export)
    end(written)
    return folder / receipt_chain.FILE


def change(path: Path, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    """Replace the lines of a chain."""
    path.write_bytes(b"".join(line + b"\n" for line in edit(receipt_chain.read_lines(path))))


def resign(
    lines: list[bytes], signer: DeviceIdentity, edit: Callable[[dict[str, Any]], object] = id
) -> list[bytes]:
    """The lines, each edited, linked and signed again by `signer`, as its holder could do it."""
    out: list[bytes] = []
    for number, raw in enumerate(lines):
        line = json.loads(raw)
        edit(line)
        previous = receipt_chain.hash_of(out[-1]) if out else receipt_chain.START
        line |= {"number": number, "previous": previous, "public": signer.public.hex()}
        line.pop(SIGNATURE)
        signature = signer.for_run(line["run"]).sign(PREFIX + canonical(line))
        out.append(canonical({**line, SIGNATURE: signature.hex()}))
    return out
