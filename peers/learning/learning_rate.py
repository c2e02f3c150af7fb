"""The learning rate of a local step: a warm-up, then a schedule over the rounds of the run."""

from __future__ import annotations

import math

from peers.config import TrainConfig


def factor(train: TrainConfig, rounds: int, began: int, round: int, step: int, steps: int) -> float:
    """The share of `train.lr` of step `step` of `steps` in a round.

    rounds: of the run. began: the first round of the own block; a joiner warms up from there. The warm-up
    rises linearly to 1. The schedule falls with the round: linear, 1 - p, or cosine, (1 + cos(pi p)) / 2,
    with p = round / rounds (Loshchilov and Hutter, 2017, eq. 5 without restarts).
    """
    passed = round / rounds
    falling = {"linear": 1 - passed, "cosine": (1 + math.cos(math.pi * passed)) / 2}.get(train.schedule, 1.0)
    if round - began >= train.warmup_rounds:
        return falling
    done = (round - began) * steps + min(step, steps - 1) + 1
    return falling * done / (train.warmup_rounds * steps)
