"""What `lookahead` has each device try on its own model for one round: staying, and each notch of its knobs.

A device alone cannot try another graph, mixing strength or exchange period, since neighbours would have to
join in: those moves count as untried. Trials travel as one vector behind the observables of a diagnosis, and
their mean over the network is what the policy looks at (`View.trials`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coordinator_free.correction.action_model import own_moves
from coordinator_free.correction.policy_interface import STAY, GroupAction, Limits, Settings

NAME = "lookahead"  # the policy that asks for them
LABELS = ("more-steps", "less-steps", "more-prox", "less-prox")
Key = tuple[str, str]  # of View.trials: group and label, or STAY


def trial_count(groups: Iterable[str]) -> int:
    """How many numbers a device tells."""
    return len(_keys(groups))


def trial_settings(settings: Settings, limits: Limits) -> dict[Key, dict[str, GroupAction]]:
    """What to try from `settings`, those in force: by key, the settings of all groups."""
    found: dict[Key, dict[str, GroupAction]] = {STAY: dict(settings)}
    for move in own_moves(settings, limits):
        found[move.group, move.label] = {**settings, move.group: move.action}
    return found


def pack(drops: Mapping[Key, float], groups: Iterable[str]) -> NDArray[np.float64]:
    """By how much the loss fell in each trial; 0 for what was not tried."""
    return np.array([drops.get(key, 0.0) for key in _keys(groups)], dtype=np.float64)


def unpack(vector: NDArray[np.float64], groups: Iterable[str]) -> dict[Key, float]:
    """Raises ValueError for another length."""
    return dict(zip(_keys(groups), map(float, vector), strict=True))


def _keys(groups: Iterable[str]) -> Sequence[Key]:
    return [STAY, *((group, label) for group in groups for label in LABELS)]
