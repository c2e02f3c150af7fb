"""The membership table: merging is a join, only owners make records, and a Leave is final."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Record, Status
from coordinator_free.membership.table import Membership, split_names
from tests.support.membership_records import filled, make
from tests.support.signatures import digest, public, sign_as, table

OWNED = [Status.ALIVE, Status.FINISHED, Status.RETIRED, Status.WITHDRAWN, Status.LEFT]


def crashed(record: Record) -> Record:
    return replace(record, status=Status.CRASHED)


@st.composite
def worlds(draw) -> list[Record]:
    """Records that owners of a few devices made, one Lamport time each, and verdicts on some of them."""
    records = []
    for device in draw(st.sets(st.sampled_from(["d0", "d1", "d2"]), min_size=1)):
        for lamport in range(1, draw(st.integers(1, 6)) + 1):
            incarnation, slot = draw(st.integers(0, 2)), draw(st.integers(0, 2))
            status, since = draw(st.sampled_from(OWNED)), draw(st.integers(-1, 2))
            record = make(device, incarnation, slot, lamport, status, since_round=since)
            records.append(record)
            if status is Status.ALIVE and draw(st.booleans()):
                records.append(crashed(record))
    return records


# -- merging is a join ---------------------------------------------------------------------------------


@given(worlds(), st.randoms(use_true_random=False))
def test_order_repetition_and_batching_of_gossip_do_not_matter(world, rng):
    reference = filled(world)
    said = [*world, *rng.choices(world, k=len(world))]
    rng.shuffle(said)
    members = table()
    while said:
        batch = said[: rng.randint(1, 3)]
        said = said[len(batch) :]
        members.merge(batch)
    assert digest(members) == digest(reference)
    assert members.digest() == reference.digest()


@given(worlds(), st.randoms(use_true_random=False))
def test_merge_is_commutative_associative_and_idempotent(world, rng):
    a, b, c = (rng.sample(world, rng.randint(0, len(world))) for _ in range(3))

    def join(x: list[Record], y: list[Record]) -> list[Record]:
        return list(filled([*filled(x), *filled(y)]))

    assert join(a, b) == join(b, a)
    assert join(join(a, b), c) == join(a, join(b, c))
    assert join(a, a) == list(filled(a))


@given(worlds())
def test_merging_known_records_changes_nothing(world):
    members = filled(world)
    assert members.merge(world) == []
    assert members.merge(list(members)) == []
    assert members.refused == 0


@given(worlds(), st.integers(0, 2**32))
def test_gossip_in_any_order_of_exchanges_ends_in_equal_tables(world, seed):
    tables = [filled([record]) for record in world]
    random.Random(seed).shuffle(tables)
    meetings = [*pairwise(tables), *pairwise(tables[::-1])]  # down a chain and back reaches everybody
    for teller, hearer in meetings:
        hearer.merge(list(teller))
    assert {digest(t) for t in tables} == {digest(filled(world))}


@given(worlds(), st.randoms(use_true_random=False))
def test_records_that_a_device_has_not_named_are_all_that_it_lacks(world, rng):
    a, b = (filled(rng.sample(world, rng.randint(0, len(world)))) for _ in range(2))
    reference = filled([*a, *b])
    lacking = a.unnamed(split_names(b.names(len(b))))
    b.merge(lacking)
    assert digest(b) == digest(reference)
    assert a.unnamed(split_names(a.names(len(a)))) == []
    assert a.unnamed(split_names(a.names(1))) == list(a)[1:]


def test_merge_returns_the_changes():
    old, new = make("d1"), make("d1", lamport=2, status=Status.RETIRED)
    members = filled([old])
    (change,) = members.merge([new])
    assert (change.record, change.before) == (new, old)


# -- only owners make records --------------------------------------------------------------------------

FORGED = {
    "leave of another": replace(make("d1", lamport=9), status=Status.LEFT),
    "moved to another slot": replace(make("d1", lamport=9), slot=5),
    "another address": replace(make("d1", lamport=9), address="tcp://elsewhere"),
    "another first round": replace(make("d1", lamport=9), since_round=7),
    "unsigned": replace(make("d1", lamport=9), signature=b""),
    "signed with another key": make("d1", lamport=9, public=public("mallory")),
    "verdict on a record that the owner never made": crashed(replace(make("d1", lamport=9), incarnation=3)),
    "verdict that changes the record": crashed(replace(make("d1"), since_round=5)),
    "verdict on a stranger, unsigned": crashed(replace(make("d7"), signature=b"")),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_forged_record_is_refused_and_counted(forged):
    members = filled([make("d1")])
    before = digest(members)
    assert members.merge([forged]) == []
    assert members.refused == 1
    assert digest(members) == before


def test_the_first_key_seen_under_an_id_stays():
    impostor = Record("d1", 4, "tcp://x", 0, 9, 9, public=public("mallory"))
    impostor = replace(impostor, signature=sign_as("mallory", impostor.signed_data()))
    members = filled([make("d1")])
    assert members.merge([impostor]) == []
    assert filled([impostor]).merge([make("d1")]) == []


def test_a_refused_record_does_not_move_the_clock():
    members = table("d0")
    members.merge([replace(make("d1", lamport=2**60), signature=b"")])
    assert members.claim("d0", "tcp://d0", public("d0"), 4, 0).lamport == 1


def test_own_records_are_signed_and_later_than_all_merged_ones():
    members = table("d0")
    members.merge([make("d1", lamport=41)])
    record = members.claim("d0", "tcp://d0", public("d0"), 4, 0)
    left = members.amend(record, status=Status.LEFT)
    assert (record.lamport, left.lamport) == (42, 43)
    assert filled([record, left]).refused == 0


# -- statuses ------------------------------------------------------------------------------------------


@given(st.sampled_from([Status.ALIVE, Status.RETIRED, Status.WITHDRAWN]), st.integers(2, 1000))
def test_left_is_final_for_an_incarnation(status, lamport):
    members = filled([make("d1", status=Status.LEFT)])
    assert members.merge([make("d1", lamport=lamport, status=status)]) == []
    assert members.tombstoned(BlockKey("d1", 0))
    assert members.alive() == {} and members.blocks(keep_crashed=True) == {}


def test_a_device_that_left_can_return_under_a_new_incarnation():
    members = filled([make("d1", status=Status.LEFT), make("d1", incarnation=1, lamport=2)])
    assert members.alive()["d1"].incarnation == 1
    assert members.tombstoned(BlockKey("d1", 0)) and not members.tombstoned(BlockKey("d1", 1))


def test_a_crash_verdict_is_accepted_by_others_and_refuted_by_a_new_incarnation():
    witness, other = filled([make("d1")]), filled([make("d1")])
    change = witness.verdict(BlockKey("d1", 0))
    assert change is not None and change.record.status is Status.CRASHED
    other.merge([change.record])
    assert other.alive() == {}
    other.merge([make("d1", incarnation=1, lamport=2)])
    assert list(other.alive()) == ["d1"]


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.ALIVE])
def test_a_verdict_on_a_record_that_is_not_alive_does_nothing(status):
    members = filled([make("d1", status=status)])
    before = digest(members)
    assert members.verdict(BlockKey("d1", 0)) is None
    assert digest(members) == before


def test_a_verdict_on_a_stranger_does_nothing():
    assert table().verdict(BlockKey("d9", 0)) is None


def test_an_owner_withdraws_an_evicted_incarnation():
    members = table("d1")
    own = members.claim("d1", "tcp://d1", public("d1"), 4, 0)
    members.merge([crashed(own)])
    members.amend(own, status=Status.WITHDRAWN)
    assert members.claim("d1", "tcp://d1", public("d1"), 4, 0).key == BlockKey("d1", 1)


def test_a_finished_device_is_a_member_that_no_verdict_changes():
    members = filled([make("d1", lamport=2, status=Status.FINISHED), crashed(make("d1"))])
    assert list(members.alive()) == ["d1"] and members.active() == members.evicted() == {}
    assert members.training(0) == ("d1",) and list(members.blocks(False)) == [BlockKey("d1", 0)]
    assert members.verdict(BlockKey("d1", 0)) is None


def test_evicted_devices_differ_from_departed_ones():
    members = everyone()
    assert list(members.evicted()) == ["crashed"] and list(members.active()) == ["alive"]


def test_the_view_is_another_after_each_change_also_of_a_refutation():
    members = table("d0")
    own = members.claim("d0", "tcp://d0", public("d0"), 4, 0)
    digests = [members.digest()]
    members.amend(own)
    digests.append(members.digest())
    members.verdict(own.key)
    digests.append(members.digest())
    assert len(set(digests)) == 3 and members.changes == 3


def everyone() -> Membership:
    return filled(
        [
            make("alive", slot=0),
            make("crashed", slot=1, status=Status.CRASHED),
            make("left", slot=2, status=Status.LEFT),
            make("retired", slot=3, status=Status.RETIRED),
            make("withdrawn", slot=4, status=Status.WITHDRAWN),
        ]
    )


@pytest.mark.parametrize(
    ("keep_crashed", "expected"), [(False, {"alive", "retired"}), (True, {"alive", "crashed", "retired"})]
)
def test_blocks_of_the_adapter(keep_crashed, expected):
    assert {key.device for key in everyone().blocks(keep_crashed)} == expected


def test_an_older_incarnation_gives_no_block_beside_a_newer_one():
    members = filled([make("d1"), make("d1", incarnation=1, slot=1, lamport=2)])
    assert list(members.blocks(keep_crashed=True)) == [BlockKey("d1", 1)]


def test_training_starts_with_the_first_round_of_a_record():
    members = filled([make("d0"), make("d1", since_round=5), make("d2", since_round=-1)])
    assert members.training(4) == ("d0",)
    assert members.training(5) == ("d0", "d1")


# -- records from the wire -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", Status)
def test_a_record_survives_conversion_to_a_dict_and_back(status):
    record = make("d1", status=status)
    assert Record.from_dict(record.to_dict()) == record


GOOD = make("d1").to_dict()
MALFORMED = {
    "nothing": {},
    "field missing": {k: v for k, v in GOOD.items() if k != "slot"},
    "field more": {**GOOD, "extra": 1},
    "number as text": {**GOOD, "slot": "1"},
    "boolean as number": {**GOOD, "slot": True},
    "fraction": {**GOOD, "lamport": 1.0},
    "text as bytes": {**GOOD, "public": "key"},
    "no device": {**GOOD, "device": ""},
    "negative incarnation": {**GOOD, "incarnation": -1},
    "negative slot": {**GOOD, "slot": -1},
    "negative time": {**GOOD, "lamport": -1},
    "negative claim": {**GOOD, "claimed": -1},
    "round before the start": {**GOOD, "since_round": -2},
    "unknown status": {**GOOD, "status": 9},
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_record_is_refused(data):
    with pytest.raises(ValueError, match=r"membership record|Status"):
        Record.from_dict(data)
