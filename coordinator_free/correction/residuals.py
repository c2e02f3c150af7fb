"""The residuals of a correction for each layer group: the remaining error and its cause (method 6, eq.
24-33).

R_loc: the devices have not descended far enough. R_con: their copies differ. R_het: their data pull in
different directions. Each device measures its `Observables`. Their mean over the network (network_mean.py)
gives the `Means`, from which every device computes the same residuals and priorities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
HEADER = ("energy", "curvature", "smoothness", "mu", "eta", "disagreement")  # then the sketch
MAX_CONDITION = 1e3  # upper bound of L/mu, so that a flat loss curve does not make R_loc infinite
TINY = 1e-30


@dataclass(frozen=True, slots=True, eq=False)
class Observables:
    """The measurements of one device for one layer group. g_i: gradient of its loss w.r.t. *all* present
    blocks.

    `energy`: ||g_i||^2. `curvature`: lambda_max of its empirical Fisher matrix F_g. `smoothness`: L-hat, here
    lambda_max. `mu`: mu-hat (`mu_from_losses`). `eta`: step size (`effective_eta` for AdamW). `disagreement`:
    its term of D_g. `sketch`: count sketch of g_i, [m].
    """

    energy: float
    curvature: float
    smoothness: float
    mu: float
    eta: float
    disagreement: float
    sketch: Vector


@dataclass(frozen=True, slots=True)
class Means:
    """Network means of one group's observables.

    `energy`: E_g = (1/M) sum ||g_i||^2. `mean_gradient2`: ||g-bar||^2. `spread2`: zeta^2 =
    (1/M) sum ||g_i - g-bar||^2 = E_g - ||g-bar||^2. `mu`: at least L-hat / MAX_CONDITION.
    """

    energy: float
    curvature: float
    smoothness: float
    mu: float
    eta: float
    disagreement: float
    mean_gradient2: float
    spread2: float


class Residuals(NamedTuple):
    """R-hat of one group, in the unit of the loss."""

    local: float
    consensus: float
    heterogeneity: float

    @property
    def total(self) -> float:
        return sum(self)

    @property
    def largest(self) -> str:
        """The name of the largest residual, as in the records."""
        return ("R_loc", "R_con", "R_het")[self.index(max(self))]


class Priority(NamedTuple):
    """`score`: S_g, possibly divided by a size. `share`: p_g = S_g / sum S."""

    score: float
    share: float


class Size(NamedTuple):
    """The divisors of S_g for one group: its rank r_g and its number of trained parameters."""

    rank: int
    parameters: int


# -- the report of one device ----------------------------------------------------------------------------
def pack(groups: Sequence[Observables]) -> Vector:
    """One vector for the wire: the header and the sketch of each group, in the layout's order.

    Each sketch is scaled to the length of g_i. So E_g - ||g-bar||^2 is never negative, and is 0 if all
    gradients agree; the projection noise changes only their angles.
    """
    return np.concatenate([[*(getattr(g, name) for name in HEADER), *_stretched(g)] for g in groups])


def report_bytes(groups: int, sketch: int) -> int:
    """The size of one device's packed observables in bytes (float32).

    Every device relays all reports to each neighbour.
    """
    return 4 * groups * (len(HEADER) + sketch)


def unpack(mean: Vector, names: Sequence[str]) -> dict[str, Means]:
    """The means of the groups `names`, from the mean of packed vectors.

    Raises ValueError for another length.
    """
    width, rest = divmod(len(mean), len(names))
    if rest or width < len(HEADER):
        raise ValueError(f"{len(mean)} numbers cannot be the observables of {len(names)} groups")
    return {name: _means(part) for name, part in zip(names, np.split(mean, len(names)), strict=True)}


def _stretched(group: Observables) -> Vector:
    """The sketch scaled to the length of g_i."""
    length = float(np.linalg.norm(group.sketch))
    stretched: Vector = group.sketch * (math.sqrt(group.energy) / length if length else 0.0)
    return stretched


def _means(part: Vector) -> Means:
    header = dict(zip(HEADER, map(float, part), strict=False))
    gradient2 = min(
        float(np.square(part[len(HEADER) :]).sum()), header["energy"]
    )  # a larger value is rounding
    header["mu"] = max(header["mu"], header["smoothness"] / MAX_CONDITION)
    return Means(**header, mean_gradient2=gradient2, spread2=header["energy"] - gradient2)


# -- residuals -------------------------------------------------------------------------------------------
def contraction(eta: float, mu: float, steps: int) -> float:
    """q = (1 - eta mu)^n, with eta mu clipped to [0, 1]."""
    return (1.0 - min(max(eta * mu, 0.0), 1.0)) ** steps


def local(mean_gradient2: float, mu: float) -> float:
    """R_loc = ||g-bar||^2 / (2 mu): the largest gap for such a gradient (Polyak-Lojasiewicz)."""
    return mean_gradient2 / (2 * max(mu, TINY))


def consensus(smoothness: float, disagreement: float) -> float:
    """R_con = L D_g, without the constant c."""
    return smoothness * disagreement


def heterogeneity(smoothness: float, eta: float, steps: int, spread2: float, mu: float) -> float:
    """R_het = L eta^2 n^2 zeta^2 / (1 - q^2), without c: the divergence by n steps, summed over all earlier
    rounds.
    """
    left = 1 - contraction(eta, mu, steps) ** 2
    return smoothness * (eta * steps) ** 2 * spread2 / max(left, TINY)


def residuals(means: Means, steps: int, c: float = 1.0) -> Residuals:
    """R_loc, R_con and R_het of a group that takes `steps` local steps a round.

    `c`: the constant that Theorem 2 leaves open. 1 gives the bounds of method 6. 1/4 makes R_con exact where
    all curvatures are equal, and R_loc comparable with the others.
    """
    return Residuals(
        local(means.mean_gradient2, means.mu),
        c * consensus(means.smoothness, means.disagreement),
        c * heterogeneity(means.smoothness, means.eta, steps, means.spread2, means.mu),
    )


# -- priority --------------------------------------------------------------------------------------------
def priorities(means: Mapping[str, Means], divisors: Mapping[str, int] | None = None) -> dict[str, Priority]:
    """S_g = lambda_max(F_g) E_g, over the divisors if given, and p_g = S_g / sum S.

    If all S_g are 0: equal shares.
    """
    scores = {g: m.curvature * m.energy / (divisors[g] if divisors else 1) for g, m in means.items()}
    total = sum(scores.values())
    return {g: Priority(s, s / total if total > 0 else 1 / len(scores)) for g, s in scores.items()}


def all_priorities(means: Mapping[str, Means], sizes: Mapping[str, Size]) -> dict[str, dict[str, Priority]]:
    """The priorities "raw", "per_rank" and "per_parameter": the paper's own S_g grows with r_g alone (method
    6).

    Raises KeyError for a group without a size.
    """
    return {
        "raw": priorities(means),
        "per_rank": priorities(means, {g: size.rank for g, size in sizes.items()}),
        "per_parameter": priorities(means, {g: size.parameters for g, size in sizes.items()}),
    }


# -- estimates of the constants --------------------------------------------------------------------------
def mu_from_losses(rounds: Sequence[Sequence[float]], eta: float, members: int = 1) -> float:
    """mu-hat from the losses of local steps, by round: loss ~ (1 - eta mu)^(2 steps), least squares on the
    log loss.

    The slope is that within rounds, because mixing takes back part of a round's gain. With one step a round
    it is the slope over rounds, times `members`: M if only one device of M moves a block, since the mean of
    its copies then moves 1/M as far. 0 if the loss does not fall. Losses count from 0, the loss of memorised
    answers.
    """
    if eta <= 0 or not any(rounds):
        return 0.0
    within = [losses for losses in rounds if len(losses) > 1]
    over = [loss for own in rounds for loss in own]
    points = [_centred(np.log(np.maximum(losses, TINY))) for losses in within or [over]]
    steps, logs = np.concatenate(points, axis=1)
    square = float(steps @ steps)
    slope = float(steps @ logs) / square if square else 0.0
    return max(0.0, -math.expm1(slope / 2) / eta) * (1 if within else members)


def _centred(logs: Vector) -> Vector:
    """Steps and log losses of one round minus their means, [2, steps]."""
    points = np.stack([np.arange(len(logs), dtype=np.float64), logs])
    centred: Vector = points - points.mean(axis=1, keepdims=True)
    return centred


def effective_eta(move: float, steps: int, gradient: float) -> float:
    """eta-hat = ||B_after - B_before|| / (n ||g_own||): the step of AdamW in terms of plain gradient
    descent.
    """
    return move / (max(steps, 1) * gradient) if gradient > 0 else 0.0
