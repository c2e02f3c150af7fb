"""Projected steps, a baseline: local steps of a correction that do not bring a deleted block's output back.

Source: Pan et al. (2025), FedOSD. After the unlearning, a step that leads back towards the former model loses
its part along that way. In FedOSD the way back is a difference of weights. Here the deleted block has a basis
that is orthogonal to the own one, so no step leads back in weights. A step can imitate the deleted output.
The way back is therefore the move that replaces this output on the own data (handover_refit.py).

A device keeps the way back until the correction ends: a matrix for each of its own. It is derived from the
deleted block.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def without_way_back(move: Tensor, ways: Iterable[Tensor]) -> Tensor:
    """The move, less its part along each way that it follows. A move against a way stays as it is.

    move and ways: [rows, r], of one matrix. A later way may bring back a part along an earlier one that is
    not orthogonal to it.
    """
    for way in ways:
        along, size = float((move * way).sum()), float(way.square().sum())
        if along > 0 and size > 0:
            move = move - (along / size) * way
    return move
