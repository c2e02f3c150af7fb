"""What fields of a message may hold, and the few with structure: checked when packed and when unpacked.

A header is one flat array of scalars. A field with structure is a byte string in it, read with limits of its
own: msgpack makes 56 bytes of every byte that says "empty array", and allocates an array before it fills it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import msgpack

from transport.wire.errors import WireError
from transport.wire.limits import MAX_RECORDS, RECORD_BYTES, TREE_BYTES

SMALL = 4096  # bytes of a header that may be unpacked in one go
Buffer = bytes | memoryview
Check = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Field:
    """What a field may hold; for one with structure, how it becomes a byte string and is read from one."""

    check: Check
    dump: Callable[[Any], bytes] | None = None
    load: Callable[[bytes], Any] | None = None


def text(limit: int) -> Check:
    return lambda v: type(v) is str and len(v) <= limit


def whole(low: int, high: int) -> Check:
    return lambda v: type(v) is int and low <= v <= high


def data(low: int, high: int) -> Check:
    return lambda v: type(v) is bytes and low <= len(v) <= high


def one_of(*words: str) -> Check:
    return lambda v: type(v) is str and v in words


def optional(check: Check) -> Check:
    return lambda v: v is None or check(v)


def flag(v: Any) -> bool:
    return type(v) is bool


def name(v: Any) -> bool:
    """Printable: names end up in logs and paths."""
    return type(v) is str and 0 < len(v) <= 128 and v.isprintable()


def _scalar(v: Any) -> bool:
    """None, bool, 63-bit int, finite float, text of at most 256 characters or 128 bytes."""
    if type(v) is int:
        return -(1 << 63) < v < 1 << 63
    if type(v) is float:
        return math.isfinite(v)
    return v is None or type(v) is bool or _label(v) or _short(v)


_label, _short = text(256), data(0, 128)


def _tree(v: Any, depth: int = 4) -> bool:
    """Scalars, and lists or maps of them a few levels deep."""
    if type(v) is dict:
        return depth > 0 and (not v or all(_label(k) and _tree(x, depth - 1) for k, x in v.items()))
    if type(v) in (list, tuple):
        return depth > 0 and all(_tree(x, depth - 1) for x in v)
    return _scalar(v)


def _record(v: Any) -> bool:
    return type(v) is dict and len(v) <= 32 and all(_label(k) and _scalar(x) for k, x in v.items())


def _many(check: Check, limit: int) -> Check:
    return lambda v: isinstance(v, list) and len(v) <= limit and all(map(check, v))


def _unpack(packed: Buffer, max_array_len: int = 0, max_map_len: int = 0) -> Any:
    return msgpack.unpackb(
        packed,
        raw=False,
        strict_map_key=True,
        max_array_len=max_array_len,
        max_map_len=max_map_len,
        max_ext_len=0,
    )


def unpack_array(packed: Buffer, length: int) -> list[Any]:
    """A header: one array of `length` scalars. Raises WireError, or what msgpack raises."""
    if len(packed) <= SMALL:  # whatever is nested in so little is small
        values = _unpack(packed, max_array_len=length)
        if type(values) is list and len(values) == length:
            return values
    elif packed[0] == 0x90 + length:  # msgpack's "array of up to 15"
        return _stream(packed[1:], length)
    raise WireError("another number of fields")


def _stream(packed: Buffer, limit: int) -> list[Any]:
    """At most `limit` values one after the other, none of them with structure."""
    if not packed:
        return []
    unpacker = msgpack.Unpacker(
        raw=False, max_buffer_size=len(packed), max_array_len=0, max_map_len=0, max_ext_len=0
    )
    unpacker.feed(packed)
    values = list(islice(unpacker, limit))
    if unpacker.tell() != len(packed):
        raise WireError("a list too long or cut off")
    return values


def _joined(values: Any) -> bytes:
    packer = msgpack.Packer(autoreset=False)
    for value in values:
        packer.pack(value)
    return bytes(packer.bytes())


def rows(limit: int, *checks: Check) -> Field:
    """A list of tuples of scalars; on the wire the scalars one after the other."""
    width = len(checks)

    def row(v: Any) -> bool:
        return isinstance(v, tuple) and len(v) == width and all(c(x) for c, x in zip(checks, v, strict=True))

    def load(packed: bytes) -> Any:
        return list(zip(*[iter(_stream(packed, limit * width))] * width, strict=True))

    return Field(_many(row, limit), lambda table: _joined(chain.from_iterable(table)), load)


def capped(packed: Any, limit: int) -> bytes:
    """Raises WireError for anything but a byte string of at most `limit` bytes."""
    if type(packed) is not bytes or len(packed) > limit:
        raise WireError("a part of the header is too long")
    return packed


def _dump(value: Any, limit: int) -> bytes:
    packed: bytes = msgpack.packb(value)
    if len(packed) > limit:
        raise ValueError(f"{len(packed)} bytes where {limit} are allowed")
    return packed


def _read_record(packed: Any) -> Any:
    """Checked one by one: a hostile record must not be kept while the next is read."""
    record = _unpack(capped(packed, RECORD_BYTES), max_map_len=32)
    if not _record(record):
        raise WireError("no record")
    return record


WORDS = Field(_many(name, 64), _joined, lambda packed: _stream(packed, 64))
TREE = Field(
    lambda v: type(v) is dict and _tree(v),
    lambda tree: _dump(tree, TREE_BYTES),
    lambda packed: _unpack(capped(packed, TREE_BYTES), 256, 256),
)
RECORDS = Field(
    _many(_record, MAX_RECORDS),
    lambda records: _joined(_dump(record, RECORD_BYTES) for record in records),
    lambda packed: [_read_record(one) for one in _stream(packed, MAX_RECORDS)],
)
