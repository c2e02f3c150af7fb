"""Masked reports: masks cancel over a cohort, hide each value, and leave the mean as it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator_free.correction import lookahead
from coordinator_free.correction.masking import (
    LEAST_MEMBERS,
    LEVELS,
    MOST_MEMBERS,
    SKETCH,
    UNITS,
    Cohort,
    decode,
    encode,
    mask,
    report_bytes,
    units,
)
from coordinator_free.correction.network_mean import NetworkMean
from coordinator_free.correction.residuals import HEADER, group_numbers
from coordinator_free.identifiers import BlockKey
from transport.security.mask_keys import MaskKey

LENGTH = 8
KEYS = [BlockKey(f"d{i}", i % 2) for i in range(7)]
MASK_KEYS = {key: MaskKey() for key in KEYS}
UNIT = np.full(LENGTH, SKETCH)
COHORTS = st.sets(st.sampled_from(KEYS), min_size=LEAST_MEMBERS)
FINITE = st.floats(-1e3, 1e3, width=32)


def cohort(members: set[BlockKey] | list[BlockKey], epoch: int = 4) -> Cohort:
    return Cohort(epoch, {key: MASK_KEYS[key].public for key in members})


def own_mask(key: BlockKey, of: Cohort, length: int = LENGTH) -> np.ndarray:
    return mask(key, of, length, MASK_KEYS[key].stream)


@settings(max_examples=40)
@given(COHORTS, st.integers(0, 1 << 40))
def test_the_masks_of_every_cohort_cancel(members: set[BlockKey], epoch: int) -> None:
    of = cohort(members, epoch)
    masks = [own_mask(key, of) for key in members]
    assert not sum(masks, np.zeros(LENGTH, dtype=np.uint64)).any()
    assert all(found.all() for found in masks)  # a number of 64 bits is hardly ever 0


@settings(max_examples=40)
@given(st.lists(st.lists(FINITE, min_size=LENGTH, max_size=LENGTH), min_size=3, max_size=7))
def test_the_masked_mean_is_the_mean_up_to_half_a_unit(rows: list[list[float]]) -> None:
    of = cohort(KEYS[: len(rows)])
    total = np.zeros(LENGTH, dtype=np.uint64)
    plain = np.zeros(LENGTH, dtype=np.uint64)
    for key, row in zip(of.mask_keys, rows, strict=True):
        numbers, clipped = encode(np.array(row), UNIT)
        assert clipped == 0
        total, plain = total + numbers + own_mask(key, of), plain + numbers
    assert (total == plain).all()  # to the last bit: no mask changes what is read
    np.testing.assert_allclose(decode(total, UNIT, len(rows)), np.mean(rows, axis=0), rtol=1e-12, atol=SKETCH)


def test_one_masked_report_is_not_correlated_with_its_values() -> None:
    count = 4000
    values = np.random.default_rng(5).standard_normal(count)
    numbers, _ = encode(values, np.full(count, SKETCH))
    masked = numbers + own_mask(KEYS[0], cohort(KEYS[:3]), count)

    def correlation(found: np.ndarray) -> float:
        return float(abs(np.corrcoef(found.view(np.int64).astype(np.float64), values)[0, 1]))

    assert correlation(numbers) > 0.99
    assert correlation(masked) < 6 / count**0.5
    bits = np.unpackbits(masked.view(np.uint8))
    assert abs(bits.mean() - 0.5) < 6 * 0.5 / len(bits) ** 0.5


def test_a_member_that_repeats_the_key_of_another_one_uncovers_nothing() -> None:
    """Its mask with the victim must not cancel the mask that the victim shares with the owner of the key."""
    thief, victim, honest = BlockKey("a", 0), BlockKey("b", 0), BlockKey("c", 0)
    own, theirs = MaskKey(), MaskKey()
    of = Cohort(1, {thief: theirs.public, victim: own.public, honest: theirs.public})
    assert mask(victim, of, LENGTH, own.stream).all()


def test_masks_of_other_epochs_and_other_cohorts_are_others() -> None:
    cohorts = [cohort(KEYS[:3]), cohort(KEYS[:3], epoch=5), cohort(KEYS[:4])]
    masks = [own_mask(KEYS[0], of) for of in cohorts]
    assert len({of.digest for of in cohorts}) == len({found.tobytes() for found in masks}) == 3
    other_key = Cohort(4, {**cohort(KEYS[:3]).mask_keys, KEYS[1]: MaskKey().public})
    assert other_key.digest != cohorts[0].digest


def test_a_sum_in_which_a_mask_is_left_is_refused() -> None:
    length = group_numbers(16)
    of, unit = cohort(KEYS[:3]), units(1, 16)
    left = own_mask(KEYS[0], of, length) + own_mask(KEYS[1], of, length)
    with pytest.raises(ValueError, match="the sum of 3 masked reports is out of range"):
        decode(left, unit, 3)
    assert not decode(left + own_mask(KEYS[2], of, length), unit, 3).any()


def test_values_beyond_the_range_are_clipped_and_counted() -> None:
    unit = np.array([SKETCH, SKETCH, UNITS["energy"]])
    numbers, clipped = encode(np.array([1e30, -1e30, 7.0]), unit)
    assert clipped == 2
    assert decode(numbers, unit, 1).tolist() == [2.0**12, -(2.0**12), 7.0]
    most = np.full(3, MOST_MEMBERS * LEVELS, dtype=np.int64).view(np.uint64)  # all members clip
    assert decode(most, unit, MOST_MEMBERS).tolist() == [2.0**12, 2.0**12, 2.0**20]


def test_every_place_of_a_report_has_a_unit() -> None:
    assert set(UNITS) == set(HEADER)
    trials = lookahead.trial_count(("early", "late"))
    assert len(units(2, 64, trials)) == 2 * group_numbers(64) + trials
    assert report_bytes(3, 64) == 16 + 8 * len(units(3, 64))


def test_small_and_very_large_cohorts_send_no_reports() -> None:
    def sends(size: int) -> bool:
        return Cohort(0, {BlockKey(f"d{i}", 0): b"" for i in range(size)}).reports

    assert [size for size in (0, 1, 2, 3, MOST_MEMBERS, MOST_MEMBERS + 1) if sends(size)] == [3, MOST_MEMBERS]


# -- in the network mean -------------------------------------------------------------------------------------
def reported(members: list[BlockKey], of: Cohort) -> NetworkMean:
    """The mean of one device, with the reports of these members."""
    node = NetworkMean(LENGTH, 8, masked=True)
    for key in members:
        node.add_own_masked(key, of, own_mask(key, of), lambda data: b"signed")
    return node


def test_reports_of_different_digests_are_never_added() -> None:
    of, wider = cohort(KEYS[:3]), cohort(KEYS[:4])
    node = reported(KEYS[:3], of)
    total = node.masked_sum(of)
    assert total is not None and not total.any()
    assert node.missing_of(wider) == KEYS[:4] and node.masked_sum(wider) is None
    node.add_own_masked(KEYS[1], wider, own_mask(KEYS[1], wider), lambda data: b"signed")
    assert node.missing_of(of) == [KEYS[1]] and node.masked_sum(of) is None


def test_a_sum_with_a_missing_report_is_not_read() -> None:
    node = reported(KEYS[:2], cohort(KEYS[:3]))
    assert node.missing_of(cohort(KEYS[:3])) == [KEYS[2]]
    assert node.masked_sum(cohort(KEYS[:3])) is None


def test_a_masked_report_comes_back_from_the_wire_and_other_sizes_do_not() -> None:
    of = cohort(KEYS[:3])
    node = reported(KEYS[:1], of)
    (sent,) = node.unsent_reports("d6")
    packed = sent.packed()
    assert len(packed) == 16 + 8 * LENGTH
    other = NetworkMean(LENGTH, 8, masked=True)
    found = other.unpack(sent.origin, sent.epoch, packed, sent.signature)
    assert found is not None and found.signed_data() == sent.signed_data()
    assert other.on_report("d6", found) and other.missing_of(of) == KEYS[1:3]
    for wrong in (packed[:-1], packed[:-8], packed[16:], b"", bytes(4 * LENGTH)):
        assert other.unpack(sent.origin, sent.epoch, wrong, b"") is None
    plain = NetworkMean(LENGTH, 8)
    assert plain.unpack(sent.origin, sent.epoch, packed, b"") is None
    assert not plain.on_report("d6", found) and plain.refused == 1
