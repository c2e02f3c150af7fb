"""Messages to bytes and back: a fixed prefix, a small msgpack header, and raw tensor bytes in a second frame.

A message of updates has the headers of all its matrices, and their payloads in the second frame.

The prefix names the type before anything is unpacked, so that the size limit of the type is checked first.
Then follow the checksum of the header (it detects faults; keys detect forgery) and the types and ranges of
all fields (fields.py). Any error is a WireError. A message that `unpack` would refuse is a ValueError in
`pack`. Pickle is never used.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import msgpack

from coordinator_free import ranges
from coordinator_free.ranges import Check, data, valid_device_id, whole
from transport.wire.errors import WireError
from transport.wire.fields import (
    RECORDS,
    TREE,
    WORDS,
    Field,
    capped,
    device_or_all,
    flag,
    joined,
    objects,
    one_of,
    optional,
    record_names,
    rows,
    text,
    unpack_array,
    word,
)
from transport.wire.fragments import split
from transport.wire.limits import (
    MAX_DELETED,
    MAX_HASH,
    MAX_INPUTS,
    MAX_ITEMS,
    MAX_PAYLOAD,
    MAX_UPDATES,
    MAX_WISHES,
    NEVER_NS,
)
from transport.wire.messages import (
    Ack,
    Buffer,
    Bye,
    Credit,
    Deleted,
    Envelope,
    Gossip,
    Hello,
    Inputs,
    Manifest,
    Message,
    Nack,
    Observed,
    Ping,
    PingRequest,
    Refuse,
    Request,
    Stopping,
    Suspect,
    Transit,
    Update,
    Updates,
    Window,
)

VERSION = 6
MAGIC = b"uw"
PREFIX = struct.Struct(">2sBBqqq")  # magic, version, kind, sequence, departure ns, arrival ns
_STAMP = struct.Struct(">qqq")  # the end of the prefix: sequence, departure ns, arrival ns
CHECKSUM = struct.Struct(">I")  # CRC-32 of the header before it


_COUNT = whole(0, (1 << 63) - 1)
_INCARNATION, _ROUND = ranges.incarnation, ranges.round_
_SIGNATURE = ranges.signature
_DIGEST = data(8, 32)
_BLOCK = (valid_device_id, _INCARNATION, word, whole(-1, 1 << 62))


@dataclass(frozen=True, slots=True)
class _Kind:
    """One message type: the limit of its header in bytes and its fields, in order.

    `dumps`, `loads`: conversions of structured fields, each with the field's index.
    """

    type: type[Any]
    cap: int
    names: tuple[str, ...]
    checks: tuple[Check, ...]
    dumps: tuple[tuple[int, Callable[[Any], bytes]], ...]
    loads: tuple[tuple[int, Callable[[bytes], Any]], ...]
    payload: bool

    @property
    def name(self) -> str:
        return self.type.__name__

    def values(self, message: Message) -> list[Any]:
        return [getattr(message, label) for label in self.names]

    def misfit(self, values: Iterable[Any]) -> str | None:
        """The name of the first field that is out of range, else None."""
        for label, check, value in zip(self.names, self.checks, values, strict=True):
            if not check(value):
                return label
        return None

    def wrong_part(self, label: str, value: Any) -> str:
        """The entry of a list that is out of range, if one is; else the value, or the length of the list."""
        if not isinstance(value, list):
            return f"{value!r:.200}"
        check = self.checks[self.names.index(label)]
        return next((f"{entry!r:.200}" for entry in value if not check([entry])), f"{len(value)} entries")


def _kind(type_: type[Any], cap: int, *fields: Field | Check, payload: bool = False) -> _Kind:
    names = tuple(f.name for f in dataclasses.fields(type_))
    every = [f if isinstance(f, Field) else Field(f) for f in fields]
    assert len(names) == len(every), type_
    dumps = tuple((at, field.dump) for at, field in enumerate(every) if field.dump)
    loads = tuple((at, field.load) for at, field in enumerate(every) if field.load)
    return _Kind(type_, cap, names, tuple(field.check for field in every), dumps, loads, payload)


_SIZE = whole(1, 1 << 34)
_STATUS = one_of("sent", "replaces", "unchanged", "similar", "withheld")
_UPDATE = (
    *(*_BLOCK, _ROUND, one_of("train", "correction", "transfer"), word),
    *(whole(1, 1 << 31), whole(1, 1 << 16), whole(0, 1 << 34), _SIZE, optional(whole(0, MAX_HASH))),
    optional(_SIGNATURE),
)
_KINDS: dict[int, _Kind] = {
    1: _kind(Hello, 32 << 10, ranges.address, TREE, flag, WORDS, _ROUND, record_names),
    2: _kind(Refuse, 4 << 10, text(512)),
    3: _kind(Gossip, 256 << 10, RECORDS, flag, _ROUND),
    4: _kind(Updates, 96 << 10, objects(Update, 1, MAX_UPDATES, *_UPDATE), payload=True),
    5: _kind(
        Manifest,
        512 << 10,
        _ROUND,
        one_of("train", "correction"),
        _DIGEST,
        rows(MAX_ITEMS, *_BLOCK, _STATUS),
    ),
    6: _kind(Request, 192 << 10, rows(MAX_WISHES, *_BLOCK), _ROUND),
    7: _kind(Ping, 256, _COUNT, _DIGEST),
    8: _kind(Bye, 1 << 10, text(128), flag),
    9: _kind(Window, 256, _COUNT, whole(0, NEVER_NS), whole(-2, 1 << 40), _COUNT, flag, _INCARNATION),
    10: _kind(Credit, 256, _COUNT),
    11: _kind(Stopping, 512, valid_device_id, _INCARNATION, _SIGNATURE, flag),
    12: _kind(Ack, 256, _COUNT, _DIGEST),
    13: _kind(PingRequest, 512, valid_device_id, _COUNT),
    14: _kind(Nack, 256, _COUNT),
    15: _kind(Suspect, 512, valid_device_id, _INCARNATION, ranges.lamport, valid_device_id),
    16: _kind(Deleted, 192 << 10, rows(MAX_DELETED, valid_device_id, _INCARNATION, device_or_all)),
}
_KINDS[20] = _kind(Observed, 128 << 10, valid_device_id, _INCARNATION, _ROUND, data(4, 100 << 10), _SIGNATURE)
_KINDS[21] = _kind(Inputs, MAX_INPUTS + 512, valid_device_id, _INCARNATION, data(4, MAX_INPUTS))
_KINDS[22] = _kind(Transit, 256, whole(-(1 << 62), 1 << 62))
_NAMES = tuple(field.name for field in dataclasses.fields(Update))
_VALUES = attrgetter(*_NAMES)
CODES: dict[type[Any], int] = {kind.type: code for code, kind in _KINDS.items()}  # of each type of message


def pack(envelope: Envelope, message: Message, payload: Buffer | None = None) -> list[Buffer]:
    """[header] or, for Updates, [header, payload].

    Raises ValueError for a message that `unpack` would refuse.
    """
    kind = _KINDS[CODES[type(message)]]
    prefix, body = _packable(envelope, message, kind)
    frames: list[Buffer] = [seal(prefix + msgpack.packb(body))]
    if payload is not None:
        frames.append(payload)
    _check_packed(frames, kind)
    return frames


def pack_header(update: Update) -> bytes:
    """The header of a matrix, for `pack_updates`. Raises ValueError for one that `unpack` would refuse."""
    values = _VALUES(update)
    for name, check, value in zip(_NAMES, _UPDATE, values, strict=True):
        if not check(value):
            raise ValueError(f"Update.{name} is out of range: {value!r:.200}")
    return joined(values)


def pack_updates(envelope: Envelope, headers: Sequence[bytes], payload: Buffer) -> list[Buffer]:
    """The frames of Updates, as `pack` makes them, of headers that `pack_header` has made.

    `payload`: the payloads of all headers, joined. Raises ValueError as `pack`.
    """
    kind = _KINDS[CODES[Updates]]
    body = [envelope.src, envelope.src_incarnation, b"".join(headers)]
    frames: list[Buffer] = [seal(_prefix(envelope, kind) + msgpack.packb(body)), payload]
    _check_packed(frames, kind)
    return frames


def pack_fragments(
    envelope: Envelope, update: Update, payload: Buffer, part_bytes: int
) -> list[list[Buffer]]:
    """The messages of a matrix that is sent in fragments of `part_bytes`. `update`: the header of the first.

    Raises ValueError as `pack`.
    """
    size = len(payload)
    if size != update.total or update.offset:
        raise ValueError(f"{size} bytes of payload at offset {update.offset} do not make {update.total}")
    parts = split(payload, part_bytes)
    headers = [pack_header(replace(update, offset=at * part_bytes)) for at in range(len(parts))]
    return [pack_updates(envelope, [header], part) for header, part in zip(headers, parts, strict=True)]


def _packable(envelope: Envelope, message: Message, kind: _Kind) -> tuple[bytes, list[Any]]:
    """The prefix of a header and the values of its array."""
    values = kind.values(message)
    wrong = kind.misfit(values)
    if wrong is not None:
        part = kind.wrong_part(wrong, getattr(message, wrong))
        raise ValueError(f"{kind.name}.{wrong} is out of range: {part}")
    for at, dump in kind.dumps:
        values[at] = dump(values[at])
    return _prefix(envelope, kind), [envelope.src, envelope.src_incarnation, *values]


def _prefix(envelope: Envelope, kind: _Kind) -> bytes:
    code = CODES[kind.type]
    return PREFIX.pack(MAGIC, VERSION, code, envelope.seq, envelope.depart_ns, envelope.arrive_ns)


def _check_packed(frames: Sequence[Buffer], kind: _Kind) -> None:
    try:
        _check_frames(frames, kind)
    except WireError as error:
        raise ValueError(str(error)) from None


def stamp(header: Buffer, seq: int, depart_ns: int, arrive_ns: int) -> bytes:
    """The header with its sequence number and times, which are known only when the message leaves."""
    stamped = bytearray(header[: -CHECKSUM.size])
    _STAMP.pack_into(stamped, PREFIX.size - _STAMP.size, seq, depart_ns, arrive_ns)
    return seal(bytes(stamped))


def seal(header: bytes) -> bytes:
    """The first frame of a message: a prefix and a body, with their checksum."""
    return header + CHECKSUM.pack(zlib.crc32(header))


def unpack(frames: Sequence[Buffer]) -> tuple[Envelope, Message]:
    """The message in these frames. Raises WireError for anything but exactly one valid message."""
    if not 1 <= len(frames) <= 2:
        raise WireError(f"a message of {len(frames)} frames")
    header = memoryview(frames[0])
    if len(header) < PREFIX.size + CHECKSUM.size:
        raise WireError("a header shorter than its prefix")
    magic, version, code, seq, depart_ns, arrive_ns = PREFIX.unpack_from(header)
    if magic != MAGIC:
        raise WireError("not an unweft message")
    if version != VERSION:
        raise WireError(f"protocol version {version}; this device uses {VERSION}")
    kind = _KINDS.get(code)
    if kind is None:
        raise WireError(f"unknown message type {code}")
    _check_frames(frames, kind)
    end = len(header) - CHECKSUM.size
    if CHECKSUM.unpack_from(header, end)[0] != zlib.crc32(header[:end]):
        raise WireError("the checksum of a header does not match")
    src, incarnation, fields = _body(header[PREFIX.size : end], kind)
    if not (valid_device_id(src) and _INCARNATION(incarnation) and seq >= 0 <= depart_ns and arrive_ns >= 0):
        raise WireError("the sender or the times of a header are out of range")
    message: Message = kind.type(*fields)
    envelope = Envelope(src, incarnation, seq, depart_ns, arrive_ns, kind.name)
    if isinstance(message, Updates):
        _check_sizes(message.headers, len(frames[1]))
    elif kind.dumps and 2 * len(header) > kind.cap:
        _check_sendable(envelope, message)
    return envelope, message


def _check_sendable(envelope: Envelope, message: Message) -> None:
    """Whether a message can be packed again. A float of 4 bytes is packed as 8 bytes."""
    try:
        pack(envelope, message)
    except ValueError as error:
        raise WireError(f"a message that could not be sent on: {error}") from None


def _check_frames(frames: Sequence[Buffer], kind: _Kind) -> None:
    if len(frames[0]) > kind.cap:
        raise WireError(f"a {kind.name} of {len(frames[0])} bytes; at most {kind.cap}")
    if (len(frames) == 2) != kind.payload or (kind.payload and not 0 < len(frames[1]) <= MAX_PAYLOAD):
        raise WireError(f"a {kind.name} with a wrong payload")


def _check_sizes(headers: Sequence[Update], size: int) -> None:
    """The payload is one fragment that lies within its update, or all of it belongs to whole updates."""
    if len(headers) == 1 and headers[0].offset + size > headers[0].total:
        raise WireError("a fragment that is outside its update")
    if len(headers) > 1 and (any(h.offset for h in headers) or sum(h.total for h in headers) != size):
        raise WireError("the payload is not that of the updates")


def _body(packed: Buffer, kind: _Kind) -> tuple[Any, Any, list[Any]]:
    """Source, incarnation and the checked fields."""
    try:
        src, incarnation, *fields = unpack_array(packed, 2 + len(kind.names))
        for at, load in kind.loads:
            fields[at] = load(capped(fields[at], kind.cap))
        wrong = kind.misfit(fields)
    except WireError:
        raise
    except Exception as error:  # msgpack raises many types of exceptions for malformed bytes
        raise WireError(f"malformed header: {type(error).__name__}") from None
    if wrong is not None:
        raise WireError(f"{kind.name}.{wrong} is out of range")
    return src, incarnation, fields


def wire_bytes(frames: Sequence[Buffer], curve: bool = False) -> int:
    """Bytes of a message on the wire. ZMTP puts 2 bytes before a frame of less than 256 bytes, else 9.

    With CURVE each frame travels as a MESSAGE command, which adds 33 bytes: 8 name, 8 nonce, 16
    authentication tag and 1 flag (CurveZMQ, RFC 26; ZMTP 3.1). The identity frame of a ROUTER is local and
    not on the wire.
    """
    extra, total = 33 if curve else 0, 0
    for frame in frames:
        size = len(frame) + extra
        total += size + (2 if size < 256 else 9)
    return total
