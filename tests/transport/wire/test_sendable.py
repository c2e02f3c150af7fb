"""What is let in can be sent: whatever `unpack` accepts is packed again to an equal message."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator_free import ranges
from coordinator_free.membership.signed_records import Record, Status
from tests.support.bombs import ENVELOPE, raw
from transport.wire import limits
from transport.wire.errors import WireError
from transport.wire.messages import Deleted, Gossip, Manifest, Message, Request, Updates
from transport.wire.packing import _KINDS, MAGIC, PREFIX, VERSION, pack, seal, unpack

ID = "d" * 60
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.integers(-2, 4),
    st.floats(),
    st.floats(width=32),
    st.text(max_size=300),
    st.sampled_from(["d0", "x" * 200, "a\nb", "?x", "/../../x", "*", ID, "tcp://a:1", "train", "sent", "g"]),
    st.binary(max_size=140),
    st.sampled_from([bytes(8), bytes(32), bytes(64), b"\x80", b""]),
)


def record(**changes: object) -> dict[str, object]:
    """The largest record, with changes."""
    made = Record(
        *(ID, ranges.MAX_INCARNATION, "a" * ranges.MAX_ADDRESS, ranges.MAX_SLOT),
        *(ranges.MAX_LAMPORT, ranges.MAX_LAMPORT, Status.LEFT, ranges.MAX_ROUND),
        bytes(ranges.MAX_KEY_BYTES),
        bytes(ranges.MAX_SIGNATURE_BYTES),
        b"\x09" * ranges.MASK_KEY_BYTES,
    )
    return {**made.to_dict(), **changes}


LARGEST: list[Message] = [
    Gossip([record()] * limits.MAX_GOSSIP, True, ranges.MAX_ROUND),
    Deleted([(ID, ranges.MAX_INCARNATION, ID)] * limits.MAX_DELETED),
    Request([(ID, ranges.MAX_INCARNATION, "g" * 64, 1 << 62)] * limits.MAX_WISHES, ranges.MAX_ROUND),
    Manifest(
        ranges.MAX_ROUND,
        "correction",
        bytes(32),
        [(ID, ranges.MAX_INCARNATION, "middle", 1 << 62, "unchanged")] * limits.MAX_ITEMS,
    ),
]


@pytest.mark.parametrize("message", LARGEST, ids=lambda m: type(m).__name__)
def test_the_largest_messages_that_a_device_collects_can_be_sent(message: Message) -> None:
    assert unpack(pack(ENVELOPE, message))[1] == message


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(_KINDS)), st.data())
def test_a_message_of_any_fields_is_refused_or_can_be_packed_again(code: int, data: st.DataObject) -> None:
    kind = _KINDS[code]
    fields = [data.draw(SCALARS, label=name) for name in kind.names]
    for at, _ in kind.loads:  # structured fields: scalars in a row, or one map
        many = st.lists(SCALARS, max_size=9).map(lambda row: b"".join(map(packed, row)))
        maps = st.dictionaries(st.text(max_size=9), SCALARS, max_size=5).map(packed)
        fields[at] = data.draw(many | maps | maps.map(packed))
    prefix = PREFIX.pack(MAGIC, VERSION, code, 1, 2, 3)
    header = seal(prefix + msgpack.packb(["d1", 0, *map(clean, fields)]))
    payload = [b"payload"] if kind.payload else []
    try:
        envelope, message = unpack([header, *payload])
    except WireError:
        return
    again = pack(envelope, message, payload[0] if isinstance(message, Updates) else None)
    assert unpack(again) == (envelope, message)


@settings(max_examples=400)
@given(st.sampled_from(sorted(ranges.RECORD_FIELDS)), SCALARS)
def test_a_record_of_any_fields_is_refused_or_can_be_relayed(field: str, value: object) -> None:
    """The table and the wire have the same ranges."""
    try:
        made = Record.from_dict(record(**{field: value}))
    except ValueError:
        with pytest.raises(ValueError, match="out of range"):
            pack(ENVELOPE, Gossip([record(**{field: value})], False, 0))
        return
    relayed = Gossip([made.to_dict()], False, 0)
    assert unpack(pack(ENVELOPE, relayed))[1] == relayed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "x" * 200),
        ("device", "a\nb"),
        ("device", "?x"),
        ("device", "/../../x"),
        ("incarnation", 1 << 40),
        ("incarnation", -1),
        ("address", "tcp://a\nb:1"),
        ("address", "t" * 257),
        ("slot", 1 << 40),
        ("lamport", 1 << 62),
        ("since_round", 1 << 41),
        ("status", 6),
        ("public", bytes(65)),
    ],
)
def test_a_record_that_could_not_be_relayed_is_refused(field: str, value: object) -> None:
    packed_record = msgpack.packb(record(**{field: value}))
    with pytest.raises(WireError):
        unpack(raw("Gossip", msgpack.packb(packed_record), True, 0))
    with pytest.raises(ValueError, match=f"{field} of a membership record is out of range"):
        Record.from_dict(record(**{field: value}))


@pytest.mark.parametrize("source", ["?x", "x" * 200, "a\nb", "/../../x", "*", "d0@0"])
def test_a_sender_without_a_device_id_is_refused(source: str) -> None:
    with pytest.raises(WireError):
        unpack(raw("Ping", 1, bytes(8), src=source))


def packed(value: object) -> bytes:
    made: bytes = msgpack.packb(clean(value))
    return made


def clean(value: object) -> object:
    """A value that msgpack can pack."""
    if isinstance(value, dict):
        return {clean(k): clean(v) for k, v in value.items()}
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
