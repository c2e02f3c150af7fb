"""The trials of the policy `lookahead`: each device tries single moves on its own model for one round.

The trials are staying and each notch of the device's own knobs. A device alone cannot try another graph,
mixing strength or exchange period; those moves count as untried. The results travel as one vector after the
observables of a diagnosis, and the policy gets their mean over the network (`View.trials`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coordinator_free.correction.action_model import own_moves
from coordinator_free.correction.policy_interface import STAY, GroupAction, Limits, Settings

NAME = "lookahead"  # the policy that needs trials
LABELS = ("more-steps", "less-steps", "more-prox", "less-prox")
Key = tuple[str, str]  # key of View.trials: group and label of a move, or STAY


def trial_count(groups: Iterable[str]) -> int:
    """The length of the vector of trial results."""
    return len(_keys(groups))


def trial_settings(settings: Settings, limits: Limits) -> dict[Key, dict[str, GroupAction]]:
    """The settings of each trial from the present `settings`, by key."""
    found: dict[Key, dict[str, GroupAction]] = {STAY: dict(settings)}
    for move in own_moves(settings, limits):
        found[move.group, move.label] = {**settings, move.group: move.action}
    return found


def pack(drops: Mapping[Key, float], groups: Iterable[str]) -> NDArray[np.float64]:
    """The drop of the loss in each trial as a vector, [trial_count]; 0 for an untried move."""
    return np.array([drops.get(key, 0.0) for key in _keys(groups)], dtype=np.float64)


def unpack(vector: NDArray[np.float64], groups: Iterable[str]) -> dict[Key, float]:
    """The inverse of `pack`. Raises ValueError for another length."""
    return dict(zip(_keys(groups), map(float, vector), strict=True))


def _keys(groups: Iterable[str]) -> Sequence[Key]:
    return [STAY, *((group, label) for group in groups for label in LABELS)]
