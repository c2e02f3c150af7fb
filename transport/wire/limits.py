"""Sizes that the wire format fixes or allows. Every message is checked against them before it is decoded.

The limit of each message type's header stands in the table of types in packing.py.
"""

from __future__ import annotations

MAX_PAYLOAD = 4 << 20  # bytes of matrices in one message
MAX_UPDATES = 256  # matrices in one message
SMALL_HEADER_BYTES = 4096  # bytes of a header that is unpacked in one call
MAX_ITEMS = 4096  # entries of a manifest
MAX_WISHES = 1024  # entries of a Request
MAX_INPUTS = 512 << 10  # bytes of second moments in one Inputs
MAX_DELETED = 1024  # entries of a Deleted
MAX_RECORDS = 1024  # membership records that one Gossip may hold
MAX_GOSSIP = 256  # membership records that a device puts into one Gossip
RECORD_BYTES = 1 << 10  # bytes of one packed membership record
TREE_BYTES = 16 << 10  # bytes of a packed fingerprint
MAX_HASH = (1 << 64) - 1  # the largest XXH3 checksum of a payload
NEVER_NS = 1 << 62  # stands for "never" among times

FRAME_BYTES = 1 << 16  # least limit of the matrices in one message; a token bucket is two of them deep
HEADER_BYTES = 264  # upper bound of an update's header and framing, for planning: ids of <= 60 characters
SIGNATURE_BYTES = 66  # added to a header where versions are signed
CURVE_BYTES = 80  # added to a message where links are encrypted
WINDOW_BYTES = 8 << 20  # data in flight to one peer without its credit
