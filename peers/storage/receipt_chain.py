"""Receipt chains: signed lines about deletions, each with the hash of the line before (docs/receipts.md).

A device appends to FILE in its folder, and copies the file beside the adapter that it exports. A line is
canonical JSON, so one receipt has one form. The signature covers all other fields of the line, after PREFIX.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from coordinator_free.identifiers import BlockKey
from coordinator_free.ranges import valid_device_id, valid_run_name
from peers.storage.record_files import end_line
from transport.wire.fields import device_or_all

FILE = "receipts.jsonl"
FORMAT = 1
START = "0" * 64  # in the first line, in place of the hash of a line before
PREFIX = b"unweft receipt\n"  # so that no other statement of a device can be taken for a receipt
SIGNATURE = "signature"

Check = Callable[[Any], bool]
Fields = Mapping[str, Any]


# -- the form of a line ----------------------------------------------------------------------------------
def _whole(value: Any) -> bool:
    return type(value) is int


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _text(value: Any) -> bool:
    return type(value) is str


def _hex(value: Any) -> bool:
    return _text(value) and len(bytes.fromhex(value)) * 2 == len(value)


def _run(value: Any) -> bool:
    return value == "" or valid_run_name(value)


def _block(value: Any) -> bool:
    if not _text(value):
        return False
    key = BlockKey.parse(value)
    return str(key) == value and valid_device_id(key.device)


def _blocks(value: Any) -> bool:
    return type(value) is list and all(map(_block, value))


def _hex_of(name: Check) -> Check:
    """A table of values in hex, by names that `name` allows."""
    return lambda value: type(value) is dict and all(map(name, value)) and all(map(_hex, value.values()))


def _record(value: Any) -> bool:
    return value is None or type(value) is dict


HEAD: dict[str, Check] = {
    "number": _whole,
    "run": _run,
    "device": valid_device_id,
    "life": _whole,
    "kind": _text,
    "round": _whole,
    "t_s": _number,
    "previous": _hex,
    "public": _hex,
    SIGNATURE: _hex,
}
KINDS: dict[str, dict[str, Check]] = {  # the further fields of each kind
    "begin": {"format": lambda value: _whole(value) and value == FORMAT},
    "deleted": {
        "block": _block,
        "reason": _text,
        "sha256_before": _hex,
        "sha256_after": _hex,
        "values": _hex_of(_text),
        "leave": _record,
        "members": _hex_of(valid_device_id),
    },
    "confirmed": {"block": _block, "who": device_or_all},
    "exported": {"adapter_sha256": _hex, "blocks": _hex_of(_block), "members": _hex_of(valid_device_id)},
    "end": {"reason": _text, "blocks": _blocks, "members": _hex_of(valid_device_id)},
}


@dataclass(frozen=True, slots=True)
class Receipt:
    """One line of a chain. `fields`: those of its kind. `raw`: the line without its end."""

    number: int
    run: str
    device: str
    life: int
    kind: str
    round: int
    t_s: float
    previous: str
    public: str  # Ed25519 key in hex
    fields: dict[str, Any]
    raw: bytes

    @property
    def block(self) -> BlockKey:
        """The block of a `deleted` or a `confirmed`."""
        return BlockKey.parse(self.fields["block"])

    def is_signed(self, verify: Callable[[bytes, bytes, bytes, str], bool]) -> bool:
        """Whether the holder of `public` signed this line. `verify(public, data, signature, run)`."""
        line = json.loads(self.raw)
        signature = bytes.fromhex(line.pop(SIGNATURE))
        return verify(bytes.fromhex(self.public), PREFIX + canonical(line), signature, self.run)


def canonical(line: Fields) -> bytes:
    """The only form of a line: sorted keys, no spaces, ASCII."""
    return json.dumps(line, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def hash_of(raw: bytes) -> str:
    """SHA-256 of a line without its end, in hex."""
    return sha256(raw).hexdigest()


def parse(raw: bytes) -> Receipt:
    """Read a line without its end. Raises ValueError if it is no receipt, or in another form."""
    try:
        line = json.loads(raw)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    kind = line.get("kind") if isinstance(line, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError("it is of no known kind")
    checks = HEAD | KINDS[kind]
    if set(line) != set(checks) or canonical(line) != raw:
        raise ValueError("it has other fields or another form than a receipt")
    wrong = next((name for name, check in checks.items() if not check(line[name])), None)
    if wrong is not None:
        raise ValueError(f"its field {wrong!r} has no allowed value")
    head = {name: line[name] for name in HEAD if name != SIGNATURE}
    return Receipt(**head, fields={name: line[name] for name in KINDS[kind]}, raw=raw)


def read_lines(path: Path) -> list[bytes]:
    """The lines of a chain without their ends. A last line without an end counts."""
    lines = path.read_bytes().split(b"\n")
    return lines if lines[-1] else lines[:-1]


# -- writing ---------------------------------------------------------------------------------------------
class ReceiptChain:
    """Appends receipts to the chain of one device. Not thread-safe.

    `sign` signs for the run `run`. The file is read at the first `append`, because an earlier life of the
    device may still write it before.
    """

    def __init__(
        self, folder: Path, device: str, life: int, run: str, public: bytes, sign: Callable[[bytes], bytes]
    ) -> None:
        self.folder = folder
        self._head = {"run": run, "device": device, "life": life, "public": public.hex()}
        self._sign = sign
        self._number, self._previous = -1, ""

    def append(self, kind: str, round_: int, t_s: float, fields: Fields) -> None:
        """Sign and write one receipt."""
        if self._number < 0:
            self._open()
        place = {"number": self._number, "previous": self._previous}
        line = {**self._head, **place, "kind": kind, "round": round_, "t_s": t_s, **fields}
        signature = self._sign(PREFIX + canonical(line))
        raw = canonical({**line, SIGNATURE: signature.hex()})
        with (self.folder / FILE).open("ab") as file:
            file.write(raw + b"\n")
        self._number, self._previous = self._number + 1, hash_of(raw)

    def _open(self) -> None:
        """Go on after the last line. Half a line of a killed process is ended and stays in the chain."""
        path = self.folder / FILE
        end_line(path)
        lines = read_lines(path) if path.exists() else []
        self._number, self._previous = len(lines), hash_of(lines[-1]) if lines else START


def keep(source: Path, target: Path) -> None:
    """Copy the chain in the folder `source` into the folder `target`, if there is one."""
    if (source / FILE).exists():
        unfinished = target / f"{FILE}.tmp"
        shutil.copyfile(source / FILE, unfinished)
        unfinished.replace(target / FILE)
