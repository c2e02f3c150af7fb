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
HEADER = ("energy", "noise", "curvature", "smoothness", "gap", "rate", "known", "eta", "copies")
MAX_CONDITION = 1e3  # upper bound of L/mu, so that a small gradient does not make R_loc infinite
COPIES_PART = 4  # the sketch of the copies has one number for this many of the gradient's sketch
LEAST_RATE = 1e-3  # of a local step; a flat loss curve then does not make R_het infinite
LEAST_GAP = 1e-3  # nats: smaller gaps are the rounding and the noise of the floor
TINY = 1e-30


@dataclass(frozen=True, slots=True, eq=False)
class Observables:
    """The measurements of one device for one layer group. g_i: gradient of its loss w.r.t. *all* present
    blocks, measured on n of its N examples.

    `energy`: ||g_i||^2 as measured. `noise`: the part of it that the sampling of examples adds
    (`sampling_noise`). `curvature`: lambda_max of its empirical Fisher matrix F_g. `smoothness`: L-hat.
    `gap`: its loss above the floor, in nats, the same in all groups. `rate`: the share of the gap's square
    root that a local step removes, eta mu (`rate_from_gaps`); None: not known. `eta`: step size
    (`effective_eta` for AdamW). `sketch`: count sketch of g_i, [m]. `copies`: count sketch of its copies of
    all blocks, [m / COPIES_PART].
    """

    energy: float
    noise: float
    curvature: float
    smoothness: float
    gap: float
    rate: float | None
    eta: float
    sketch: Vector
    copies: Vector


@dataclass(frozen=True, slots=True)
class Means:
    """Network means of one group's observables.

    `energy`: E_g = (1/M) sum ||g_i||^2. `mean_gradient2`: ||g-bar||^2. `spread2`: zeta^2 =
    (1/M) sum ||g_i - g-bar||^2 = E_g - ||g-bar||^2. All three are without the noise of sampled examples.
    `gap`: mean loss above the floor. `mu`: mu-hat, at least L-hat / MAX_CONDITION. `rate`: eta mu of a local
    step, at least LEAST_RATE. `disagreement`: (1/M^2) sum_ij ||B^(i) - B^(j)||^2 = 2 D_0.
    """

    energy: float
    curvature: float
    smoothness: float
    gap: float
    mu: float
    rate: float
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
def group_numbers(sketch: int) -> int:
    """The length of the vector of one group. `sketch`: m."""
    return len(HEADER) + sketch + copies_size(sketch)


def copies_size(sketch: int) -> int:
    """The length of the sketch of the copies beside a gradient's sketch of m numbers."""
    return max(sketch // COPIES_PART, 1)


def pack(groups: Sequence[Observables]) -> Vector:
    """One vector for the wire: header, sketch and copies of each group, in the layout's order.

    Each sketch is scaled to the length of g_i. So E_g - ||g-bar||^2 is never negative, and is 0 if all
    gradients agree; the projection noise changes only their angles.
    """
    return np.concatenate([[*_header(g), *_stretched(g), *g.copies] for g in groups])


def report_bytes(groups: int, sketch: int) -> int:
    """The size of one device's packed observables in bytes (float32).

    Every device relays all reports to each neighbour.
    """
    return 4 * groups * group_numbers(sketch)


def unpack(mean: Vector, names: Sequence[str], members: int) -> dict[str, Means]:
    """The means of the groups `names`, from the mean of the packed vectors of `members` devices.

    Raises ValueError for another length.
    """
    width, rest = divmod(len(mean), len(names))
    sketch = _sketch_size(width)
    if rest or sketch is None:
        raise ValueError(f"{len(mean)} numbers cannot be the observables of {len(names)} groups")
    parts = dict(zip(names, np.split(mean, len(names)), strict=True))
    energy = sum(_energy(part) for part in parts.values())
    return {name: _means(part, sketch, members, energy) for name, part in parts.items()}


def _sketch_size(width: int) -> int | None:
    """The inverse of `group_numbers`; None if there is none."""
    about = (width - len(HEADER)) * COPIES_PART // (COPIES_PART + 1)
    return next((m for m in (about, about + 1) if m > 0 and group_numbers(m) == width), None)


def _header(group: Observables) -> list[float]:
    known = group.rate is not None
    copies2 = float(np.square(group.copies).sum())
    derived = {"rate": group.rate or 0.0, "known": float(known), "copies": copies2}
    return [derived[name] if name in derived else float(getattr(group, name)) for name in HEADER]


def _stretched(group: Observables) -> Vector:
    """The sketch scaled to the length of g_i."""
    length = float(np.linalg.norm(group.sketch))
    stretched: Vector = group.sketch * (math.sqrt(group.energy) / length if length else 0.0)
    return stretched


def _energy(part: Vector) -> float:
    """E_g without the noise of sampled examples."""
    header = dict(zip(HEADER, map(float, part), strict=False))
    return max(header["energy"] - header["noise"], 0.0)


def _means(part: Vector, sketch: int, members: int, all_energy: float) -> Means:
    """The means of one group. `all_energy`: sum of E_g over the groups."""
    header = dict(zip(HEADER, map(float, part), strict=False))
    gradient, copies = np.split(part[len(HEADER) :], [sketch])
    energy = _energy(part)
    # The mean of M gradients has one M-th of the noise of one.
    mean2 = float(np.square(gradient).sum()) - header["noise"] / members
    mean2 = min(max(mean2, 0.0), energy)  # values beyond are rounding and chance
    smooth = header["smoothness"]
    mu = max(mu_from_gap(all_energy, header["gap"]), smooth / MAX_CONDITION)
    rate = header["rate"] / header["known"] if header["known"] > 0 else header["eta"] * mu
    return Means(
        energy=energy,
        curvature=header["curvature"],
        smoothness=smooth,
        gap=header["gap"],
        mu=mu,
        rate=min(max(rate, LEAST_RATE), 1.0),
        eta=header["eta"],
        disagreement=2 * max(header["copies"] - float(np.square(copies).sum()), 0.0),
        mean_gradient2=mean2,
        spread2=energy - mean2,
    )


# -- residuals -------------------------------------------------------------------------------------------
def contraction(rate: float, steps: int) -> float:
    """q = (1 - eta mu)^n, with the rate eta mu of a step clipped to [0, 1]."""
    return (1.0 - min(max(rate, 0.0), 1.0)) ** steps


def local(mean_gradient2: float, mu: float) -> float:
    """R_loc = ||g-bar||^2 / (2 mu): the largest gap for such a gradient (Polyak-Lojasiewicz)."""
    return mean_gradient2 / (2 * max(mu, TINY))


def consensus(smoothness: float, disagreement: float) -> float:
    """R_con = L D, without the constant c. D = 2 D_0 is the mean square distance of two copies."""
    return smoothness * disagreement


def heterogeneity(smoothness: float, eta: float, steps: int, spread2: float, rate: float) -> float:
    """R_het = L eta^2 n^2 zeta^2 / (1 - q^2), without c: the divergence by n steps, summed over all earlier
    rounds.
    """
    left = 1 - contraction(rate, steps) ** 2
    return smoothness * (eta * steps) ** 2 * spread2 / max(left, TINY)


def residuals(means: Means, steps: int, c: float = 1.0) -> Residuals:
    """R_loc, R_con and R_het of a group that takes `steps` local steps a round.

    `c`: the constant that Theorem 2 leaves open. 1 gives the bounds of method 6. 1/4 makes R_con exact where
    all curvatures are equal, and R_loc comparable with the others.
    """
    return Residuals(
        local(means.mean_gradient2, means.mu),
        c * consensus(means.smoothness, means.disagreement),
        c * heterogeneity(means.smoothness, means.eta, steps, means.spread2, means.rate),
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
def mu_from_gap(energy: float, gap: float) -> float:
    """mu-hat = E / (2 gap): the constant of the Polyak-Lojasiewicz inequality ||g_i||^2 >= 2 mu gap_i, at
    equality.

    `energy`: of all groups, without noise. `gap`: loss above the floor. R_loc = ||g-bar||^2 / (2 mu-hat) is
    then the share of the gap that belongs to the common gradient. No slope of losses is needed, so the first
    diagnosis after an event has it.
    """
    return energy / (2 * max(gap, TINY))


def rate_from_gaps(rounds: Sequence[Sequence[float]], members: int = 1) -> float | None:
    """eta mu from the losses of local steps above their floor, by round: gap ~ (1 - eta mu)^(2 steps), least
    squares on the log gap.

    The slope is that within rounds, because mixing takes back part of a round's gain. With one step a round
    it is the slope over rounds, times `members`: M if only one device of M moves a block, since the mean of
    its copies then moves 1/M as far. 0 if the gap does not fall; None with fewer than two steps.
    """
    within = [gaps for gaps in rounds if len(gaps) > 1]
    over = [gap for own in rounds for gap in own]
    if len(over) < 2:
        return None
    points = [_centred(np.log(np.maximum(gaps, LEAST_GAP))) for gaps in within or [over]]
    steps, logs = np.concatenate(points, axis=1)
    slope = float(steps @ logs) / float(steps @ steps)
    return min(max(0.0, -math.expm1(slope / 2)) * (1 if within else members), 1.0)


def sampling_noise(gram: Vector, population: int) -> float:
    """The mean of ||g - g_N||^2 for the mean gradient g of n of N examples: tr Sigma / n (1 - n/N).

    gram: of the examples' shares of g (which sum to g), [n, n]. tr Sigma is the unbiased estimate. 0 for all
    N examples. A single example does not show its noise: 0.
    """
    n = len(gram)
    if n < 2 or n >= population:
        return 0.0
    scatter = max(float(np.trace(gram)) - float(gram.sum()) / n, 0.0)
    return scatter * n / (n - 1) * (1 - n / population)


def _centred(logs: Vector) -> Vector:
    """Steps and log gaps of one round minus their means, [2, steps]."""
    points = np.stack([np.arange(len(logs), dtype=np.float64), logs])
    centred: Vector = points - points.mean(axis=1, keepdims=True)
    return centred


def effective_eta(move: float, steps: int, gradient: float) -> float:
    """eta-hat = ||B_after - B_before|| / (n ||g_own||): the step of AdamW in terms of plain gradient
    descent.
    """
    return move / (max(steps, 1) * gradient) if gradient > 0 else 0.0
