"""Messages survive packing; anything else is a WireError at little cost; fragments are reassembled."""

from __future__ import annotations

import dataclasses
import random
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.bombs import BOMBS, ENVELOPE, UPDATE, hostile, raw
from transport.wire.checksum import xxh3
from transport.wire.errors import WireError
from transport.wire.fragments import Reassembler, split
from transport.wire.limits import MAX_INPUTS, MAX_ITEMS, MAX_PAYLOAD, MAX_UPDATES
from transport.wire.messages import (
    Ack,
    Bye,
    Credit,
    Deleted,
    Gossip,
    Hello,
    Inputs,
    Manifest,
    Nack,
    Ping,
    PingRequest,
    Refuse,
    Request,
    Suspect,
    Transit,
    Update,
    Updates,
    Window,
)
from transport.wire.packing import CHECKSUM, PREFIX, VERSION, pack, seal, stamp, unpack, wire_bytes

(WHOLE,) = UPDATE.headers


def updates(**fields: object) -> Updates:
    return Updates([dataclasses.replace(WHOLE, **fields)])  # type: ignore[arg-type]


RECORD = {
    "device": "d1",
    "incarnation": 3,
    "public": b"k" * 32,
    "signature": b"s" * 64,
    "share": 0.5,
    "x": None,
}
DIGEST = b"v" * 16
MESSAGES = [
    Hello("tcp://10.0.0.1:5555", {"base": "abc", "groups": {"early": [3, 8]}, "s": 4.0}, True, ["int8"], -1),
    Hello("tcp://10.0.0.1:5555", {"base": "abc"}, False, ["int8"], 3, b"n" * 8 * 1024),
    Refuse("another basis: é, and\na second line"),
    Gossip([RECORD, {**RECORD, "device": "d2"}], False, 7),
    UPDATE,
    updates(xxh3=None, offset=65536, total=70000, signature=b"s" * 64),
    Updates(
        [dataclasses.replace(WHOLE, group=group, total=total) for group, total in (("early", 3), ("x", 4))]
    ),
    Manifest(4, "train", b"v" * 16, [("d1", 0, "early", 3, "sent"), ("d2", 1, "late", -1, "withheld")]),
    Manifest(4, "correction", b"v" * 8, []),
    Request([("d1", 0, "early", -1)], 9),
    Ping(0, DIGEST),
    Ack(1 << 40, DIGEST),
    PingRequest("d3", 7),
    Nack(7),
    Suspect("d3", 1, 99, "d4"),
    Deleted([("d3", 1, "d4"), ("d3", 1, "*")]),
    Bye("leave"),
    Bye("finished", True),
    Window(3, 1 << 62, -2, 17, True),
    Credit(1 << 20),
    Transit(-200_000_000),
    Inputs("d3", 1, bytes(4)),
    Inputs("d" * 60, 1, bytes(MAX_INPUTS)),
]


TWO = Updates([WHOLE, dataclasses.replace(WHOLE, group="late")])


def frames(message) -> list:
    return pack(ENVELOPE, message, b"payload" if isinstance(message, Updates) else None)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_comes_back_as_it_was_sent(message) -> None:
    envelope, back = unpack(frames(message))
    assert back == message
    assert envelope == ENVELOPE._replace(kind=type(message).__name__)


def test_large_lists_come_back_too() -> None:
    items = [(f"d{n}", n, "early", n, "unchanged") for n in range(MAX_ITEMS)]
    message = Manifest(1, "train", b"v" * 16, items)
    assert unpack(frames(message))[1] == message
    with pytest.raises(ValueError, match=r"Manifest.items is out of range: 4097 entries"):
        frames(Manifest(1, "train", b"v" * 16, [*items, items[0]]))
    with pytest.raises(ValueError, match=r"Manifest.items is out of range: \('d9', -3, 'early', 1, 'sent'\)"):
        frames(Manifest(1, "train", b"v" * 16, [*items[:9], ("d9", -3, "early", 1, "sent")]))
    records = Gossip([{"device": f"d{n}", "incarnation": n} for n in range(1024)], True, 1)
    assert unpack(frames(records))[1] == records


def test_the_payload_is_not_copied_and_stamping_changes_only_sequence_and_times() -> None:
    payload = memoryview(bytearray(b"12345678"))
    header, frame = pack(ENVELOPE, UPDATE, payload)
    assert frame is payload
    envelope, message = unpack([stamp(header, 5, 6, 7), frame])
    assert (envelope.seq, envelope.depart_ns, envelope.arrive_ns, message) == (5, 6, 7, UPDATE)


BAD = [
    Refuse("x" * 513),
    Ping(1.0, DIGEST),  # type: ignore[arg-type]
    Ping(True, DIGEST),
    Ping(1, 1),  # type: ignore[arg-type]
    Ping(-2, DIGEST),
    Ping(1, b"v" * 33),
    PingRequest("", 1),
    Suspect("d1", 0, -1, "d2"),
    Deleted([("d1", 0)]),  # type: ignore[list-item]
    Window(0, -1, 0, 0, False),
    Window(0, 0, -3, 0, False),
    Credit(1 << 63),
    Transit((1 << 62) + 1),
    Bye("x", 1),  # type: ignore[arg-type]
    Hello("a", {"k": "x" * 257}, True, [], 0),
    Hello("a", {"k": [[[[[1]]]]]}, True, [], 0),
    Hello("a", {"k": float("nan")}, True, [], 0),
    Hello("a", {}, True, ["bad\nname"], 0),
    Hello("a", {}, True, [], 0, b"n" * 7),
    Hello("a", {}, True, [], 0, b"n" * 8 * 1025),
    Gossip([{"k": b"x" * 129}], True, 0),
    Gossip([{"k": [1]}], True, 0),
    Gossip([{"k": 1 << 63}], True, 0),
    Gossip([{1: "x"}], True, 0),  # type: ignore[dict-item]
    Gossip([{}] * 1025, True, 0),
    Manifest(1, "other", b"v" * 8, []),
    Manifest(1, "train", b"v" * 7, []),
    Manifest(1, "train", b"v" * 8, [("d1", 0, "g", 1, "lost")]),
    Manifest(1, "train", b"v" * 8, [("d1", 0, "g", 1)]),  # type: ignore[list-item]
    Request([("", 0, "g", 1)], 0),
    updates(cause="control"),
    updates(rows=0),
    updates(xxh3=1 << 64),
    updates(signature=b"s" * 129),
    Updates([]),
    Updates([WHOLE] * (MAX_UPDATES + 1)),
]


@pytest.mark.parametrize("message", BAD, ids=lambda m: type(m).__name__)
def test_a_message_that_unpack_would_refuse_is_a_value_error(message) -> None:
    with pytest.raises(ValueError, match="out of range"):
        frames(message)


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [b""],
        [b"uw"],
        [b"xx" + frames(Ping(1, DIGEST))[0][2:]],
        [b"uw\x63" + frames(Ping(1, DIGEST))[0][3:]],
        [b"uw" + bytes([VERSION]) + b"\x63" + frames(Ping(1, DIGEST))[0][4:]],
        [frames(Ping(1, DIGEST))[0][:-1]],
        [frames(Ping(1, DIGEST))[0] + b"\x00"],
        [*frames(Ping(1, DIGEST)), b"payload"],
        frames(UPDATE)[:1],
        [frames(UPDATE)[0], b""],
        [frames(UPDATE)[0], bytes(MAX_PAYLOAD + 1)],
        [frames(UPDATE)[0], bytes(48001)],
        [frames(TWO)[0], bytes(95_999)],
        [frames(TWO)[0], bytes(96_001)],
        [frames(Updates([WHOLE, dataclasses.replace(WHOLE, offset=1)]))[0], bytes(96_000)],
        [*frames(UPDATE), b""],
        [stamp(frames(Ping(1, DIGEST))[0], -1, 0, 0)],
        raw("Ping", 1, DIGEST, src=""),
        raw("Ping", 1, DIGEST, src="a\nb"),
        raw("Ping", 1, DIGEST, incarnation=-1),
        raw("Ping", 1),
        raw("Ping", 1, DIGEST, 1),
        raw("Ping", 1, [True]),
        raw("Ping", 1 << 63, DIGEST),
        raw("Ping", msgpack.ExtType(1, b""), DIGEST),
        raw("Ping", msgpack.Timestamp(1), DIGEST),
        raw("Refuse", {}),
        raw("Refuse", b"bytes"),
        hostile("Refuse", b"\x93\xa2d1\x00\xa2\xff\xfe"),
        raw("Manifest", 1, "train", b"v" * 8, []),
        raw("Manifest", 1, "train", b"v" * 8, msgpack.packb("cut")[:-1]),
        raw("Manifest", 1, "train", b"v" * 8, b"\x90\x90\x90\x90\x90"),
        raw("Gossip", b"\x80", True, 0),
        raw("Gossip", msgpack.packb(msgpack.packb({"k": {}})), True, 0),
        raw("Gossip", msgpack.packb(msgpack.packb({"k": "x"}) + b"\x00"), True, 0),
        raw("Hello", "a", msgpack.packb([]), True, b"", 0),
        raw("Hello", "a", msgpack.packb({"k": "x" * 257}), True, b"", 0),
        raw("Hello", "a", b"\x91" * 5000, True, b"", 0),
    ],
)
def test_a_malformed_message_is_a_wire_error(bad) -> None:
    with pytest.raises(WireError):
        unpack(bad)


def only_wire_errors(candidate: list) -> None:
    try:
        envelope, message = unpack(candidate)
    except WireError:
        return
    assert unpack(pack(envelope, message, candidate[1] if len(candidate) == 2 else None)) == (
        envelope,
        message,
    )


@settings(max_examples=500)
@given(st.integers(0, 11), st.binary(max_size=300), st.none() | st.binary(max_size=20))
def test_random_bytes_behind_a_valid_prefix(kind, body, payload) -> None:
    header = seal(PREFIX.pack(b"uw", VERSION, kind, 0, 0, 0) + body)
    only_wire_errors([header] if payload is None else [header, payload])


def test_random_bytes_and_mutated_messages() -> None:
    draw = random.Random(5)
    valid = [frames(message) for message in MESSAGES]
    for _ in range(10_000):
        only_wire_errors([draw.randbytes(draw.randrange(80)) for _ in range(draw.randrange(4))])
        header, *rest = draw.choice(valid)
        mutated = bytearray(header)
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(len(mutated))
            mutated[at : at + draw.choice((0, 1, 1, 1, 2))] = draw.randbytes(draw.choice((0, 1, 1, 1, 3)))
        only_wire_errors([bytes(mutated), *rest])
        only_wire_errors([seal(bytes(mutated[: -CHECKSUM.size])), *rest])  # what a forger would send


@settings(max_examples=500)
@given(st.sampled_from(MESSAGES), st.data())
def test_no_altered_byte_of_a_header_gets_through(message, data) -> None:
    header, *rest = frames(message)
    at = data.draw(st.integers(0, len(header) - 1))
    altered = bytes([header[at] ^ data.draw(st.integers(1, 255))])
    with pytest.raises(WireError):
        unpack([header[:at] + altered + header[at + 1 :], *rest])


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_hostile_message_costs_little_memory(bomb) -> None:
    tracemalloc.start()
    with pytest.raises(WireError):
        unpack(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20


def test_wire_bytes_are_zmtps() -> None:
    assert wire_bytes([bytes(255)]) == 257
    assert wire_bytes([bytes(256)]) == 265
    assert wire_bytes([bytes(10), bytes(1000)]) == 12 + 1009
    assert wire_bytes([bytes(222)], curve=True) == 257
    assert wire_bytes([bytes(223)], curve=True) == 265


# -- parts ---------------------------------------------------------------------------------------------
def send(box: Reassembler, payload: bytes, part_bytes: int = 10, src: str = "d1", only=None, **fields):
    """The results of adding the parts (those in `only`) of a payload."""
    header = Update("d5", 0, "g", 1, 0, "train", "fp16", 1, 1, 0, len(payload), xxh3(payload))
    header = dataclasses.replace(header, **fields)
    parts = split(payload, part_bytes)
    chosen = range(len(parts)) if only is None else only
    offsets = [(dataclasses.replace(header, offset=n * part_bytes), parts[n]) for n in chosen]
    return [box.add_fragment(src, part, data) for part, data in offsets]


@settings(max_examples=100)
@given(st.binary(min_size=1, max_size=500), st.integers(1, 600))
def test_a_payload_comes_back_from_its_parts(payload, part_bytes) -> None:
    box = Reassembler(1000)
    *unfinished, whole = send(box, payload, part_bytes)
    assert set(unfinished) <= {None}
    assert whole == payload
    assert (box.bytes_in_flight, box.abandoned) == (0, 0)


def test_sources_and_groups_do_not_mix() -> None:
    box, payload = Reassembler(1000), bytes(range(20))
    send(box, payload, only=[0])
    send(box, payload[::-1], only=[0], src="d2")
    send(box, payload[::-1], only=[0], group="h")
    assert send(box, payload, only=[1]) == [payload]


@pytest.mark.parametrize(
    "order", [[1], [0, 2], [0, 1, 1], [1, 0]], ids=["no beginning", "gap", "overlap", "backwards"]
)
def test_gaps_and_overlaps_are_refused(order) -> None:
    with pytest.raises(WireError, match=r"overlap|first fragment is missing"):
        send(Reassembler(1000), bytes(30), only=order)


@pytest.mark.parametrize("changed", [{"total": 40}, {"xxh3": 1}, {"rows": 2}, {"codec": "fp32"}])
def test_inconsistent_fragments_are_refused_and_the_update_is_abandoned(changed) -> None:
    box = Reassembler(1000)
    send(box, bytes(30), only=[0])
    with pytest.raises(WireError, match="do not agree"):
        send(box, bytes(30), only=[1], **changed)
    assert (box.bytes_in_flight, box.abandoned, box.abandoned_bytes) == (0, 1, 10)


def test_a_part_beyond_the_total_is_refused() -> None:
    with pytest.raises(WireError, match="overlap"):
        send(Reassembler(1000), bytes(30), part_bytes=30, total=20)


def test_a_newer_version_abandons_an_unfinished_older_one_and_not_the_other_way_round() -> None:
    box = Reassembler(1000)
    send(box, bytes(30), only=[0, 1])
    send(box, bytes(30), only=[0], version=2)
    assert (box.abandoned, box.abandoned_bytes) == (1, 20)
    for late in ([0], [2]):
        with pytest.raises(WireError, match=r"has replaced|first fragment is missing"):
            send(box, bytes(30), only=late)
    assert send(box, bytes(30), only=[1, 2], version=2)[-1] == bytes(30)


def test_an_update_of_which_a_part_was_lost_can_be_sent_again() -> None:
    box = Reassembler(1000)
    send(box, bytes(30), only=[0, 1])
    assert send(box, bytes(30))[-1] == bytes(30)
    assert box.abandoned == 1


def test_memory_is_bounded_by_what_updates_claim() -> None:
    box = Reassembler(50)
    send(box, bytes(30), only=[0])
    with pytest.raises(WireError, match="too many"):
        send(box, bytes(30), only=[0], group="h")
    send(box, bytes(30), only=[0], version=2)  # takes the older one's place
    assert box.bytes_in_flight == 30
    with pytest.raises(WireError, match="too many"):
        send(Reassembler(50), bytes(10), total=1 << 34)


def test_unexpected_fragments_are_refused_before_memory_is_allocated() -> None:
    box = Reassembler(1000, lambda src, part: None if part.block == "d5" else f"{src} sent an unknown block")
    with pytest.raises(WireError, match="d1 sent an unknown block"):
        send(box, bytes(30), block="d6")
    assert send(box, bytes(10)) == [bytes(10)]


def test_a_wrong_checksum_is_refused_and_none_is_not_checked() -> None:
    with pytest.raises(WireError, match="checksum"):
        send(Reassembler(1000), bytes(30), xxh3=1)
    assert send(Reassembler(1000), bytes(30), xxh3=None)[-1] == bytes(30)


def test_deletion_drops_what_is_unfinished_of_that_incarnation_only() -> None:
    box = Reassembler(1000)
    for src in ("d1", "d2"):
        send(box, bytes(30), only=[0], src=src)
    send(box, bytes(30), only=[0], block_incarnation=1)
    assert (box.drop_block("d5", 0), box.bytes_in_flight) == (2, 30)
    assert (box.drop_source("d1"), box.bytes_in_flight) == (1, 0)


def test_an_empty_payload_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        split(b"", 10)
