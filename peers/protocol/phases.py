"""The phases of a device, and which phase may follow which."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Phase(Enum):
    """The stage of a device's life. The values appear in the health report."""

    SETTLE = "settle"  # it looks for the other devices of the run
    JOIN = "join"  # it fetches the blocks of a run that has begun
    TRAIN = "train"  # its local steps of a round are under way
    WAIT = "wait"  # it has published its data and waits for its neighbours' manifests
    FINISH = "finish"  # it has closed its last round and says goodbye
    GONE = "gone"  # it has left, retired or ended


TRANSITIONS: Mapping[Phase, frozenset[Phase]] = {
    Phase.SETTLE: frozenset({Phase.JOIN, Phase.TRAIN, Phase.GONE}),
    # JOIN -> JOIN: a joiner that lost its slot claims another one.
    Phase.JOIN: frozenset({Phase.JOIN, Phase.TRAIN, Phase.FINISH, Phase.GONE}),
    Phase.TRAIN: frozenset({Phase.WAIT, Phase.FINISH, Phase.GONE}),
    Phase.WAIT: frozenset({Phase.TRAIN, Phase.FINISH, Phase.GONE}),
    # FINISH -> JOIN: a device joined after the last round and lost its slot before it ended.
    Phase.FINISH: frozenset({Phase.JOIN, Phase.GONE}),
    # GONE -> GONE: a leave after a retire, and the end of a device that has said that it goes.
    Phase.GONE: frozenset({Phase.GONE}),
}
