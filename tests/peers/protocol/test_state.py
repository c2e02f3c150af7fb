"""The state of a device: which phases follow each other, and the network's round."""

from __future__ import annotations

import ast
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from coordinator_free.correction.residuals import Size
from peers.protocol.phases import TRANSITIONS, Phase
from peers.protocol.state import DeviceState, Identity
from tests.support.signatures import public, sign_as, verify
from tests.support.simulated import GROUPS, address, small_config

ROOM = Path(__file__).parents[3] / "peers/protocol"
PAIRS = list(product(Phase, Phase))


def state(phase: Phase = Phase.SETTLE) -> DeviceState:
    me = Identity("d0", address("d0"), public("d0"), (), 0, 0)
    sizes = dict.fromkeys(GROUPS, Size(2, 32))
    made = DeviceState(me, small_config(), sizes, lambda group, codec=None: 1, partial(sign_as, "d0"), verify)
    made.phase = phase
    return made


@pytest.mark.parametrize(("before", "after"), [pair for pair in PAIRS if pair[1] in TRANSITIONS[pair[0]]])
def test_an_allowed_transition_changes_the_phase(before: Phase, after: Phase) -> None:
    made = state(before)
    made.enter(after)
    assert made.phase is after


@pytest.mark.parametrize(("before", "after"), [pair for pair in PAIRS if pair[1] not in TRANSITIONS[pair[0]]])
def test_a_forbidden_transition_raises_and_changes_nothing(before: Phase, after: Phase) -> None:
    made = state(before)
    with pytest.raises(ValueError, match=f"phase {before.value} cannot enter phase {after.value}"):
        made.enter(after)
    assert made.phase is before


def test_a_device_never_returns_from_gone_and_never_trains_after_its_last_round() -> None:
    assert TRANSITIONS[Phase.GONE] == {Phase.GONE}
    assert Phase.TRAIN not in TRANSITIONS[Phase.FINISH]


def test_the_network_round_is_the_latest_that_was_seen() -> None:
    made = state()
    seen = []
    for round_ in (3, 1, 7, -1, 7):
        made.saw_round(round_)
        seen.append(made.network_round)
    assert seen == [3, 3, 7, 7, 7]


@pytest.mark.parametrize("field", ["phase", "network_round"])
def test_only_the_state_itself_assigns_its_phase_and_the_network_round(field: str) -> None:
    assigning = {
        path.name
        for path in ROOM.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
        for target in ast.walk(node)
        if isinstance(target, ast.Attribute) and target.attr == field and isinstance(target.ctx, ast.Store)
    }
    assert assigning == {"state.py"}
