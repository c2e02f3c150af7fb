"""The trials of `lookahead` and the vector of their results."""

from __future__ import annotations

import pytest

from coordinator_free.correction import lookahead
from coordinator_free.correction.policy_interface import STAY, GroupAction, Limits

GROUPS = ("early", "late")
LIMITS = Limits(base=GroupAction(2), steps_min=1, steps_max=4)


def test_staying_and_each_notch_of_the_own_knobs_are_tried() -> None:
    held = {"early": GroupAction(2), "late": GroupAction(4, prox=1e-3)}
    wanted = lookahead.trial_settings(held, LIMITS)
    assert wanted[STAY] == held
    assert set(wanted) == {
        STAY,
        ("early", "more-steps"),
        ("early", "less-steps"),
        ("early", "more-prox"),
        ("late", "less-steps"),
        ("late", "less-prox"),
    }
    for (group, _), settings in wanted.items():
        assert {g for g in GROUPS if settings[g] != held[g]} == {group} - {STAY[0]}


def test_an_untried_move_counts_as_no_drop() -> None:
    told = lookahead.pack({STAY: 0.5, ("late", "more-prox"): -0.25}, GROUPS)
    assert len(told) == lookahead.trial_count(GROUPS) == 9
    found = lookahead.unpack(told, GROUPS)
    assert found[STAY] == 0.5 and found["late", "more-prox"] == -0.25
    assert sum(found.values()) == 0.25
    with pytest.raises(ValueError, match="zip"):
        lookahead.unpack(told[1:], GROUPS)
