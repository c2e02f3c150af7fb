"""The ranges of values that devices tell each other: one declaration for all messages and records.

`transport/wire/packing.py` and `membership/signed_records.py` use these checks in both directions. So a value
that cannot be sent cannot be let in. Every check takes any object and never raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Check = Callable[[Any], bool]

MAX_INCARNATION = 1 << 31
MAX_ROUND = 1 << 40
MAX_SLOT = 1 << 20
MAX_LAMPORT = 1 << 48  # a larger Lamport time in the table would leave no room for later ones
MAX_ADDRESS = 256  # characters of an endpoint
MAX_KEY_BYTES = 64  # of a public signing key; Ed25519 has 32
MAX_SIGNATURE_BYTES = 128  # Ed25519 has 64
MASK_KEY_BYTES = 32  # of a public X25519 key
NAME_BYTES = 8  # of the name of a membership record: the first bytes of its hash
_PRIME = (1 << 255) - 19  # of the field of Curve25519
_ORDER_8 = (  # two points of order 8
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
# The u-coordinates of all points of low order, as 255-bit numbers. X25519 maps them to a secret of zeros,
# which everybody knows (RFC 7748, section 6.1; https://cr.yp.to/ecdh.html).
LOW_ORDER = frozenset((0, 1, *_ORDER_8, _PRIME - 1, _PRIME, _PRIME + 1))
# An id is a folder name and a part of names such as d5@0. Aliases of seeds ("?0") are no ids.
DEVICE_ID = r"^[A-Za-z][A-Za-z0-9_-]{0,59}$"
DEVICE_ID_ALLOWED = "a letter, then at most 59 letters, digits, - and _"
RUN_NAME_ALLOWED = "1 to 59 letters, digits, - and _"
_RUN_NAME = re.compile(r"[A-Za-z0-9_-]{1,59}")
_ID = re.compile(DEVICE_ID.removesuffix("$"))
_PATH = re.compile(r"[A-Za-z0-9_@:=+%-][A-Za-z0-9_@:=+%.-]{0,199}")


def whole(low: int, high: int) -> Check:
    """An integer in [low, high]."""
    return lambda v: type(v) is int and low <= v <= high


def data(low: int, high: int) -> Check:
    """A byte string of low to high bytes."""
    return lambda v: type(v) is bytes and low <= len(v) <= high


def valid_device_id(v: Any) -> bool:
    """The rule for device ids, wherever they enter: scenario, command line, records, messages, files."""
    return type(v) is str and _ID.fullmatch(v) is not None


def valid_run_name(v: Any) -> bool:
    """The rule for the name of a run. It is a part of a capability of at most 64 characters."""
    return type(v) is str and _RUN_NAME.fullmatch(v) is not None


def address(v: Any) -> bool:
    """An endpoint: 1 to 256 printable ASCII characters without blanks."""
    return type(v) is str and 0 < len(v) <= MAX_ADDRESS and v.isascii() and v.isprintable() and " " not in v


def mask_key(v: Any) -> bool:
    """A public X25519 key (RFC 7748) that is no point of low order. Its highest bit does not count."""
    whole_key = type(v) is bytes and len(v) == MASK_KEY_BYTES
    return whole_key and int.from_bytes(v, "little") % (1 << 255) not in LOW_ORDER


incarnation = whole(0, MAX_INCARNATION)
round_ = whole(-1, MAX_ROUND)
slot = whole(0, MAX_SLOT)
lamport = whole(0, MAX_LAMPORT)
public_key = data(1, MAX_KEY_BYTES)
signature = data(0, MAX_SIGNATURE_BYTES)
RECORD_FIELDS: dict[str, Check] = {  # of a membership record, on the wire and in the table
    "device": valid_device_id,
    "incarnation": incarnation,
    "address": address,
    "slot": slot,
    "lamport": lamport,
    "claimed": lamport,
    "status": whole(0, 5),
    "since_round": round_,
    "public": public_key,
    "signature": signature,
    "mask_key": mask_key,
}
OPTIONAL_FIELDS = frozenset({"mask_key"})  # a record of a run without masks has none


def path_component(name: str) -> str:
    """`name`, if it is safe as one component of a path; the only way from a name to a path.

    Raises ValueError for an empty or long name, a leading dot, and any other character than ASCII letters,
    digits and _@:=+%.- (so no separator, no control character).
    """
    if _PATH.fullmatch(name) is None:
        raise ValueError(f"{name[:80]!r} cannot be a file name")
    return name
