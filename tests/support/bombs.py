"""Malformed messages whose decoding could take much memory."""

from __future__ import annotations

import msgpack

from transport.wire.limits import MAX_PAYLOAD
from transport.wire.messages import Envelope, Update, Updates
from transport.wire.packing import PREFIX, VERSION, pack, seal

UPDATE = Updates([Update("d5", 0, "early", 12, 3, "train", "fp16", 3000, 8, 0, 48000, 12345678)])
ENVELOPE = Envelope("d1", 2, 77, 10**15, 10**15 + 5)
KINDS = {"Hello": 1, "Refuse": 2, "Gossip": 3, "Updates": 4, "Manifest": 5, "Ping": 7}


def hostile(kind: str, body: bytes) -> list[bytes]:
    """A message whose checksum fits and whose body is any bytes."""
    return [seal(PREFIX.pack(b"uw", VERSION, KINDS[kind], 0, 0, 0) + body)]


def raw(kind: str, *fields: object, src: str = "d1", incarnation: int = 0) -> list[bytes]:
    """A message with these fields, which need not be of the right number or type."""
    return hostile(kind, msgpack.packb([src, incarnation, *fields]))


MAPS = b"\x81\xa1k\xdc\x00\x3d" + (b"\xdc\x01\x00" + b"\x80" * 256) * 60  # and then a NaN
PAIRS = b"\x81\xa0" * 500
BOMBS: dict[str, list[bytes]] = {
    "1 MB of nested maps": hostile("Gossip", b"\x81\xa0" * 500_000),
    "1 MB of empty maps": hostile("Gossip", b"\xdd\x00\x10\x00\x00" + b"\x80" * (1 << 20)),
    "1 MB as a ping": hostile("Ping", b"\x80" * (1 << 20)),
    "a payload one byte too long": [
        bytes(pack(ENVELOPE, UPDATE, b"payload")[0]),
        b"\x80" * (MAX_PAYLOAD + 1),
    ],
    "empty maps within the cap": hostile("Gossip", b"\x95" + b"\x80" * 260_000),
    "empty arrays within the cap": hostile("Gossip", b"\x95\xa2d1\x00" + b"\x96" + b"\x90" * 260_000),
    "arrays that claim to be long": hostile("Manifest", b"\x96" + b"\xdc\x10\x00" * 80_000),
    "arrays that claim to be long, small": [*hostile("Updates", b"\xdc\x00\x03" * 320), b"payload"],
    "headers that are empty arrays": [*raw("Updates", b"\x90" * 90_000), b"payload"],
    "more headers than one message may have": [*raw("Updates", b"\xc0" * 90_000), b"payload"],
    "items that are empty arrays": raw("Manifest", 1, "train", b"v" * 8, b"\x90" * 260_000),
    "items that are empty maps": raw("Manifest", 1, "train", b"v" * 8, b"\x80" * 20_480),
    "records that are nested maps": raw("Gossip", b"".join([msgpack.packb(PAIRS)] * 250), True, 0),
    "records of empty arrays": raw("Gossip", b"".join([msgpack.packb(b"\x81\xa0\x90")] * 40_000), True, 0),
    "a fingerprint of empty maps": raw("Hello", "a", MAPS + b"\xca\x7f\xc0\x00\x00", True, b"", 0),
    "a deep fingerprint": raw("Hello", "a", b"\x81\xa1k" + b"\xdc\x01\x00" * 5_000, True, b"", 0),
}
