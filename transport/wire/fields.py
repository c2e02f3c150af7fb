"""The fields of messages: checks of values, when packed and when unpacked, and the encoding of structured
fields.

A header is one flat array of scalars. A structured field is a byte string in it, which is unpacked with
limits of its own: msgpack needs 56 bytes for each byte that means "empty array", and allocates an array
before it fills it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, islice
from operator import attrgetter
from typing import Any

import msgpack

from coordinator_free.ranges import NAME_BYTES, RECORD_FIELDS, Check, data, valid_device_id
from transport.wire.errors import WireError
from transport.wire.limits import MAX_RECORDS, RECORD_BYTES, SMALL_HEADER_BYTES, TREE_BYTES

Buffer = bytes | memoryview
MOST = 256  # entries of one list or map of a fingerprint


@dataclass(frozen=True, slots=True)
class Field:
    """The check of a field's value and, for a structured field, its conversion to and from a byte string."""

    check: Check
    dump: Callable[[Any], bytes] | None = None
    load: Callable[[bytes], Any] | None = None


def text(limit: int) -> Check:
    """A string of at most `limit` characters."""
    return lambda v: type(v) is str and len(v) <= limit


def one_of(*words: str) -> Check:
    return lambda v: type(v) is str and v in words


def optional(check: Check) -> Check:
    return lambda v: v is None or check(v)


def flag(v: Any) -> bool:
    return type(v) is bool


def word(v: Any) -> bool:
    """A printable ASCII string of 1 to 64 characters: a group, or a capability."""
    return type(v) is str and 0 < len(v) <= 64 and v.isascii() and v.isprintable()


def device_or_all(v: Any) -> bool:
    """A device id, or `*`, which stands for all devices."""
    return v == "*" or valid_device_id(v)


def record_names(v: Any) -> bool:
    """The names of at most MAX_RECORDS membership records, in one byte string."""
    return type(v) is bytes and len(v) <= MAX_RECORDS * NAME_BYTES and len(v) % NAME_BYTES == 0


def _scalar(v: Any) -> bool:
    """None, bool, 63-bit int, finite float, text of at most 256 characters, or at most 128 bytes."""
    if type(v) is int:
        return -(1 << 63) < v < 1 << 63
    if type(v) is float:
        return math.isfinite(v)
    return v is None or type(v) is bool or _label(v) or _short(v)


_label, _short = text(256), data(0, 128)


def _tree(v: Any, depth: int = 4) -> bool:
    """Scalars, and lists or maps of them up to `depth` levels."""
    if type(v) in (dict, list, tuple) and len(v) > MOST:
        return False
    if type(v) is dict:
        return depth > 0 and (not v or all(_label(k) and _tree(x, depth - 1) for k, x in v.items()))
    if type(v) in (list, tuple):
        return depth > 0 and all(_tree(x, depth - 1) for x in v)
    return _scalar(v)


def _record(v: Any) -> bool:
    """A map of scalars. The known fields of a membership record are in their ranges."""
    small = type(v) is dict and len(v) <= 32
    return small and all(_label(k) and RECORD_FIELDS.get(k, _scalar)(x) for k, x in v.items())


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
    """The header: one array of `length` scalars. Raises WireError, or the exceptions of msgpack."""
    if len(packed) <= SMALL_HEADER_BYTES:  # nested values in so few bytes are small
        values = _unpack(packed, max_array_len=length)
        if type(values) is list and len(values) == length:
            return values
    elif packed[0] == 0x90 + length:  # the first byte of a msgpack array of up to 15 values
        return _stream(packed[1:], length)
    raise WireError("wrong number of fields")


def _stream(packed: Buffer, limit: int) -> list[Any]:
    """At most `limit` consecutive scalars."""
    if not packed:
        return []
    unpacker = msgpack.Unpacker(
        raw=False, max_buffer_size=len(packed), max_array_len=0, max_map_len=0, max_ext_len=0
    )
    unpacker.feed(packed)
    values = list(islice(unpacker, limit))
    if unpacker.tell() != len(packed):
        raise WireError("a list that is too long or truncated")
    return values


def joined(values: Iterable[Any]) -> bytes:
    """Scalars in sequence."""
    packer = msgpack.Packer(autoreset=False)
    for value in values:
        packer.pack(value)
    return bytes(packer.bytes())


def rows(limit: int, *checks: Check) -> Field:
    """A list of tuples of scalars; on the wire, the scalars in sequence."""
    width = len(checks)

    def row(v: Any) -> bool:
        return isinstance(v, tuple) and len(v) == width and all(c(x) for c, x in zip(checks, v, strict=True))

    def load(packed: bytes) -> Any:
        return list(zip(*[iter(_stream(packed, limit * width))] * width, strict=True))

    return Field(_many(row, limit), lambda table: joined(chain.from_iterable(table)), load)


def objects(type_: type[Any], least: int, limit: int, *checks: Check) -> Field:
    """A list of dataclass objects with scalar fields; on the wire, the scalars in sequence."""
    names = tuple(field.name for field in dataclasses.fields(type_))
    values, table = attrgetter(*names), rows(limit, *checks)
    assert len(names) == len(checks) and table.dump and table.load, type_
    dump, load = table.dump, table.load

    def fits(v: Any) -> bool:
        some = isinstance(v, list) and least <= len(v) <= limit and all(type(one) is type_ for one in v)
        return some and table.check(list(map(values, v)))

    return Field(fits, lambda v: dump(map(values, v)), lambda packed: [type_(*row) for row in load(packed)])


def capped(packed: Any, limit: int) -> bytes:
    """`packed`, if it is a byte string of at most `limit` bytes; otherwise raises WireError."""
    if type(packed) is not bytes or len(packed) > limit:
        raise WireError("a field of the header is too long")
    return packed


def _dump(value: Any, limit: int) -> bytes:
    packed: bytes = msgpack.packb(value)
    if len(packed) > limit:
        raise ValueError(f"{len(packed)} bytes; at most {limit} are allowed")
    return packed


def _read_record(packed: Any) -> Any:
    """Records are checked one by one, so that a hostile record is not kept while the next one is read."""
    record = _unpack(capped(packed, RECORD_BYTES), max_map_len=32)
    if not _record(record):
        raise WireError("malformed membership record")
    return _sendable(record, len(packed), RECORD_BYTES)


def _read_tree(packed: Any) -> Any:
    return _sendable(_unpack(capped(packed, TREE_BYTES), MOST, MOST), len(packed), TREE_BYTES)


def _sendable(value: Any, size: int, limit: int) -> Any:
    """`value`, if it can be packed again within its limit; otherwise raises WireError.

    Only a float of 4 bytes takes more bytes when it is packed again, and less than twice as many.
    """
    if 2 * size > limit and len(msgpack.packb(value)) > limit:
        raise WireError("a field of the header would be too long to be sent on")
    return value


WORDS = Field(_many(word, 64), joined, lambda packed: _stream(packed, 64))
TREE = Field(
    lambda v: type(v) is dict and _tree(v),
    lambda tree: _dump(tree, TREE_BYTES),
    _read_tree,
)
RECORDS = Field(
    _many(_record, MAX_RECORDS),
    lambda records: joined(_dump(record, RECORD_BYTES) for record in records),
    lambda packed: [_read_record(one) for one in _stream(packed, MAX_RECORDS)],
)
