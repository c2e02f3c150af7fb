"""Slots without a coordinator: one winner per slot, equal on all devices, for any order of gossip."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership import slots
from coordinator_free.membership.signed_records import Status
from coordinator_free.membership.slots import EVERYBODY, Quarantine
from tests.support.membership_records import filled, make
from tests.support.signatures import Cluster, table


def test_a_device_asks_for_the_number_in_its_id():
    assert [slots.preferred(d, 16) for d in ("d3", "d16", "edge-17")] == [3, 0, 1]
    assert 0 <= slots.preferred("phone", 16) < 16


def test_a_slot_that_was_never_used_comes_before_one_that_somebody_left():
    assert slots.choose("d0", taken={1}, used={0, 1, 2}, max_slots=4) == 3
    assert slots.choose("d0", taken={1, 3}, used={0, 1, 2, 3}, max_slots=4) == 0


def test_no_free_slot_names_the_limit():
    with pytest.raises(slots.NoFreeSlot, match=r"d9: all 2 slots are taken.*adapter\.max_devices = 2"):
        slots.choose("d9", taken={0, 1}, used=set(), max_slots=2)


def test_claim_without_a_free_slot_changes_nothing():
    members = filled([make("d0", slot=0), make("d1", slot=1, status=Status.RETIRED)])
    before = members.digest()
    with pytest.raises(slots.NoFreeSlot):
        members.claim("d2", "tcp://d2", b"", max_slots=2, since_round=0)
    assert members.digest() == before


CLAIMS = [make("d16", slot=0, lamport=2), make("d0", slot=0, lamport=2), make("d32", slot=0, lamport=1)]


@pytest.mark.parametrize("order", list(itertools.permutations(CLAIMS[:2])))
def test_two_claims_at_one_time_have_one_loser_the_larger_id(order):
    assert [r.device for r in slots.losers(order)] == ["d16"]
    assert [r.device for r in filled(list(order)).slot_losers()] == ["d16"]


@pytest.mark.parametrize("order", list(itertools.permutations(CLAIMS)))
def test_the_earliest_claim_wins(order):
    assert [r.device for r in slots.losers(order)] == ["d0", "d16"]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), max_size=10), st.randoms())
def test_every_claimed_slot_keeps_exactly_one_holder(claims, rng):
    records = [make(f"d{i}", slot=slot, lamport=at) for i, (slot, at) in enumerate(claims)]
    lost = slots.losers(records)
    kept = [r for r in records if r not in lost]
    assert sorted(r.slot for r in kept) == sorted({r.slot for r in records})
    rng.shuffle(records)
    assert slots.losers(records) == lost


def test_a_retired_block_holds_its_slot_against_a_later_claim():
    members = filled([make("d0", slot=0, status=Status.RETIRED), make("d16", slot=0, lamport=2)])
    assert [r.device for r in members.slot_losers()] == ["d16"]


def test_a_retired_block_yields_to_an_earlier_claim():
    members = filled([make("d0", slot=0), make("d16", slot=0, lamport=2, status=Status.RETIRED)])
    assert members.slot_losers() == []
    assert [key.device for key in members.blocks(keep_crashed=False)] == ["d0"]


def test_a_crashed_block_holds_its_slot_only_if_it_is_kept():
    members = filled([make("d0", slot=0, status=Status.CRASHED), make("d16", slot=0, lamport=2)])
    assert members.slot_losers(keep_crashed=False) == []
    assert [r.device for r in members.slot_losers(keep_crashed=True)] == ["d16"]


def test_the_loser_takes_another_slot_under_a_new_incarnation():
    cluster = Cluster(["d0", "d16"], max_slots=16, seed=0)
    assert {r.slot for r in cluster.own.values()} == {0}
    cluster.settle()
    assert (cluster.own["d0"].slot, cluster.own["d0"].incarnation) == (0, 0)
    assert (cluster.own["d16"].slot, cluster.own["d16"].incarnation) == (1, 1)


@settings(max_examples=40)
@given(st.sets(st.integers(0, 47), min_size=2, max_size=16), st.integers(0, 2**32))
def test_a_cluster_that_fills_its_slots_agrees_whatever_the_order_of_gossip(numbers, seed):
    cluster = Cluster([f"d{n}" for n in sorted(numbers)], max_slots=16, seed=seed)
    cluster.settle()
    held = [r.slot for r in table_of(cluster).alive().values()]
    assert len(set(held)) == len(numbers) == len(held)
    assert all(table_of(cluster).get(r.key) == r for r in cluster.own.values())


def table_of(cluster: Cluster):
    return next(iter(cluster.tables.values()))


def test_sixteen_devices_that_all_ask_for_slot_0_get_all_sixteen():
    cluster = Cluster([f"d{16 * n}" for n in range(16)], max_slots=16, seed=1)
    cluster.settle()
    assert {r.slot for r in cluster.own.values()} == set(range(16))


def test_a_first_device_takes_its_preferred_slot():
    assert table("d5").claim("d5", "tcp://d5", b"", 16, 0).slot == 5


# -- quarantine ------------------------------------------------------------------------------------------

GONE = make("d5", slot=5, status=Status.LEFT)


def vacant(term_ns: int = 100) -> Quarantine:
    quarantine = Quarantine(term_ns)
    assert quarantine.add_vacancy(0, GONE) and not quarantine.add_vacancy(50, GONE)
    return quarantine


def test_a_slot_is_barred_until_every_living_device_has_confirmed_the_deletion():
    quarantine = vacant()
    for device, barred in (("d0", {5}), ("d1", {5}), ("d2", set())):
        assert quarantine.confirm(1, GONE.key, device)
        assert quarantine.barred_slots(1, ["d0", "d1", "d2"]) == barred
    assert quarantine.barred_slots(1, ["d0", "d3"]) == {5}  # one that has come since


def test_slot_is_barred_until_the_quarantine_term_is_over():
    quarantine = vacant()
    assert (quarantine.barred_slots(99, ["d0"]), quarantine.barred_slots(100, ["d0"])) == ({5}, set())


def test_a_confirmation_is_new_once_and_only_during_the_quarantine():
    quarantine = vacant()
    assert [quarantine.confirm(1, GONE.key, "d0") for _ in range(2)] == [True, False]
    assert not quarantine.confirm(1, BlockKey("d6", 0), "d0")
    assert not quarantine.confirm(100, GONE.key, "d1")


def test_a_newcomer_gets_all_known_confirmations():
    quarantine = vacant()
    quarantine.confirm(1, GONE.key, "d0")
    assert quarantine.confirmations(1, ["d0", "d1"]) == [("d5", 0, "d0")]
    assert (
        quarantine.confirmations(1, ["d0"])
        == quarantine.confirmations(100, ["d0", "d1"])
        == [("d5", 0, EVERYBODY)]
    )
    other = vacant(10**9)
    assert other.confirm(1, GONE.key, EVERYBODY)
    assert other.barred_slots(1, ["d0", "d1"]) == set()


def test_a_slot_of_two_removed_blocks_needs_confirmations_for_both():
    quarantine = vacant()
    quarantine.add_vacancy(50, make("d6", slot=5, status=Status.LEFT))
    quarantine.confirm(60, GONE.key, EVERYBODY)
    assert quarantine.barred_slots(60, ["d0"]) == {5}


def test_a_barred_slot_is_not_chosen_but_may_be_wished_for():
    members = table("d0")
    assert members.claim("d0", "tcp://d0", b"", 4, 0, barred={0, 1}).slot == 2
    assert members.claim("d0", "tcp://d0", b"", 4, 0, wish=1, barred={0, 1}).slot == 1
    with pytest.raises(slots.NoFreeSlot):
        members.claim("d0", "tcp://d0", b"", 4, 0, barred={0, 1, 2, 3})
