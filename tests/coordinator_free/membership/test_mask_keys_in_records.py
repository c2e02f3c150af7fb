"""The mask key of a membership record: signed, optional, and absent where no reports are masked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator_free.membership.signed_records import Record, Status, is_genuine
from coordinator_free.ranges import LOW_ORDER
from peers.storage import leave_wishes
from tests.support.signatures import public, sign_as, table, verify

KEY = bytes([9]) + bytes(31)  # the base point


def record(mask_key: bytes = b"", status: Status = Status.ALIVE) -> Record:
    plain = Record("d1", 2, "tcp://d1", 3, 8, 7, status, 5, public("d1"), mask_key=mask_key)
    return replace(plain, signature=sign_as("d1", plain.signed_data()))


def test_a_record_without_a_mask_key_has_the_form_of_earlier_versions() -> None:
    assert record().signed_data() == b"('d1', 2, 'tcp://d1', 3, 8, 7, 0, 5, b'public:d1')"
    assert list(record().to_dict()) == [
        *("device", "incarnation", "address", "slot", "lamport", "claimed", "status", "since_round"),
        *("public", "signature"),
    ]


def test_a_record_with_a_mask_key_comes_back_from_messages_and_files() -> None:
    sent = record(KEY, Status.LEFT)
    assert Record.from_dict(sent.to_dict()) == leave_wishes.from_json(leave_wishes.to_json(sent)) == sent
    plain = record(status=Status.LEFT)
    assert leave_wishes.from_json(leave_wishes.to_json(plain)) == plain


def test_nobody_else_can_change_or_remove_the_mask_key() -> None:
    assert is_genuine(record(KEY), None, verify)
    for other in (b"", bytes([5]) + bytes(31)):
        assert not is_genuine(replace(record(KEY), mask_key=other), None, verify)
    assert not is_genuine(replace(record(), mask_key=KEY), None, verify)
    assert is_genuine(replace(record(KEY), status=Status.CRASHED), None, verify)  # a verdict


def test_a_claim_names_the_mask_key_and_later_records_keep_it() -> None:
    members = table("d1")
    claimed = members.claim("d1", "tcp://d1", public("d1"), 4, 0, mask_key=KEY)
    assert claimed.mask_key == members.amend(claimed, since_round=4).mask_key == KEY
    assert is_genuine(claimed, None, verify)


def test_tables_agree_if_an_owner_signs_two_keys_for_one_time() -> None:
    """Otherwise no later diagnosis of this incarnation would have one cohort."""
    records = [record(key) for key in (KEY, bytes([5]) + bytes(31))]
    tables = [table("d0"), table("d2")]
    for members, first in zip(tables, records, strict=True):
        members.merge([first])
    assert tables[0].digest() != tables[1].digest()  # so that gossip finds the difference
    for members in tables:
        members.merge(records)
    assert len({members.digest() for members in tables}) == 1
    assert {only.mask_key for members in tables for only in members} == {max(r.mask_key for r in records)}


def test_without_a_mask_key_a_table_has_the_digest_of_earlier_versions() -> None:
    members = table("d0")
    members.merge([record()])
    assert members.digest().hex() == "d0f352879fd3aa245eda6fe6daae4e11"


@pytest.mark.parametrize(
    "wrong", [b"", None, "key", bytes(31), KEY + b"\0", *(n.to_bytes(32, "little") for n in LOW_ORDER)]
)
def test_a_record_with_a_malformed_mask_key_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="mask_key of a membership record"):
        Record.from_dict({**record().to_dict(), "mask_key": wrong})
