"""Attacks on forgetting. Pure functions: they get losses and accuracies, not models.

LiRA (Carlini et al., 2022) asks, for each example, whether a model's confidence fits models that had the
example or models that never had it. For unlearning both kinds of models have forgotten (U-LiRA: Hayes et al.,
2024): a trace that deletion leaves is what tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from emulation.experiments.statistics import tpr_at_fpr

LEAST_LOSS = 1e-12  # nats; a probability of exactly 1 has no logit
FEWEST_MODELS = 2  # with and without an example, for a mean of each
RESAMPLES = 200  # of the bootstrap, for a standard error
CHANCE = 0.5
Values = NDArray[np.float64]


def assign(models: int, examples: int, seed: int) -> NDArray[np.bool_]:
    """Which model has which example, [models, examples]: each example is in half of the models."""
    draw = np.random.Generator(np.random.Philox(key=seed))
    rows = np.arange(models) < models // 2
    return np.stack([draw.permutation(rows) for _ in range(examples)], axis=1)


def logit_confidence(losses: Values) -> Values:
    """log(p / (1 - p)) of p = exp(-loss): close to a Gaussian over models (LiRA, section IV-B)."""
    found = np.maximum(np.asarray(losses, dtype=np.float64), LEAST_LOSS)
    scores: Values = -found - np.log(-np.expm1(-found))
    return scores


def lira(scores: Values, members: NDArray[np.bool_]) -> Values:
    """The log-likelihood ratio of membership, [models, examples].

    `scores`: logit confidences, [models, examples]. `members`: whether a model had the example. Each model is
    attacked with all others as its shadow models, but for one model of the other kind, drawn for each
    example: without a trace, the kind with more models would fit better (its mean has less noise), and the
    AUC would be below 0.5. Means are those of the example. Each kind has one variance over all examples,
    which few shadow models need (LiRA, section VI-C). nan: fewer than two shadow models of a kind.
    """
    ratios = np.full(scores.shape, np.nan)
    draw = np.random.Generator(np.random.Philox(key=0))
    models = np.arange(len(scores))[:, None]
    for target in range(len(scores)):
        opposite = members != members[target]
        left_out = np.where(opposite, draw.random(scores.shape), -1.0).argmax(axis=0)
        shadows = (models != target) & ~(opposite & (models == left_out))
        inside, outside = (_fit(scores, kind & shadows) for kind in (members, ~members))
        ratios[target] = _log_density(scores[target], *inside) - _log_density(scores[target], *outside)
    return ratios


def _fit(scores: Values, chosen: NDArray[np.bool_]) -> tuple[Values, float]:
    """The mean of each example over the chosen models, and the pooled standard deviation."""
    counts = chosen.sum(axis=0)
    enough = counts >= FEWEST_MODELS
    means = np.full(scores.shape[1], np.nan)
    means[enough] = np.where(chosen, scores, 0.0).sum(axis=0)[enough] / counts[enough]
    rest = np.where(chosen & enough, scores - np.where(enough, means, 0.0), 0.0)
    degrees = max(1, int((counts - 1)[enough].sum()))
    return means, max(math.sqrt(float(np.square(rest).sum()) / degrees), 1e-9)


def _log_density(values: Values, means: Values, deviation: float) -> Values:
    found: Values = -0.5 * np.square((values - means) / deviation) - math.log(deviation)
    return found


@dataclass(frozen=True)
class Membership:
    """The result of an attack, pooled over models and examples.

    tpr: at 1 % FPR; None with too few values. deviation, tpr_deviation: standard errors of the AUC and of the
    TPR. Models share examples, so they fall with the number of examples and not with the number of pairs.
    """

    auc: float | None
    tpr: float | None
    members: int
    others: int
    deviation: float
    tpr_deviation: float | None

    @property
    def p(self) -> float | None:
        """Two-sided, of an AUC of 0.5; the AUC of many pairs is nearly normal. None without an AUC."""
        if self.auc is None:
            return None
        if self.deviation == 0:
            return float(self.auc == CHANCE)
        return 2 * NormalDist().cdf(-abs(self.auc - CHANCE) / self.deviation)


def pooled(ratios: Values, members: NDArray[np.bool_]) -> Membership:
    """AUC and TPR of the ratios of `lira`. A high ratio means a member.

    The deviation is that of the AUC of each example over the square root of the number of examples. That of
    the TPR is the bootstrap's over examples, since it depends on a quantile, for which the formula of the
    jackknife does not hold (Efron and Tibshirani, 1993, sections 6.2 and 11.6).
    """
    inside, outside = _split(ratios, members)
    rate = tpr_at_fpr([*-inside], [*-outside])
    each = [auc_by_rank(*_split(ratios[:, e], members[:, e])) for e in range(ratios.shape[1])]
    spread = float(np.std([value for value in each if value is not None] or [0.0]))
    deviation = spread / math.sqrt(max(1, ratios.shape[1]))
    rate_deviation = None if rate is None else _rate_deviation(ratios, members)
    return Membership(
        auc_by_rank(inside, outside), rate, len(inside), len(outside), deviation, rate_deviation
    )


def _rate_deviation(ratios: Values, members: NDArray[np.bool_]) -> float:
    """The standard error of the TPR at 1 % FPR, by drawing examples again with replacement."""
    draw, n, rates = np.random.Generator(np.random.Philox(key=0)), ratios.shape[1], []
    for _ in range(RESAMPLES):
        chosen = draw.integers(n, size=n)
        inside, outside = _split(ratios[:, chosen], members[:, chosen])
        rates.append(tpr_at_fpr([*-inside], [*-outside], support=1))
    return float(np.std([rate for rate in rates if rate is not None], ddof=1))


def _split(ratios: Values, members: NDArray[np.bool_]) -> tuple[Values, Values]:
    known = ~np.isnan(ratios)
    return ratios[known & members], ratios[known & ~members]


def auc_by_rank(inside: Values, outside: Values) -> float | None:
    """P(member > non-member), a tie counts half: Mann-Whitney over ranks, since all pairs may be millions."""
    if not len(inside) or not len(outside):
        return None
    both = np.concatenate([inside, outside])
    _, place, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    wins = float(ranks[: len(inside)].sum()) - len(inside) * (len(inside) + 1) / 2
    return wins / (len(inside) * len(outside))


# -- relearning ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Relearned:
    """steps: until half of the facts were known; None: not in the steps of the attack. other: accuracy on the
    half that was not shown, then."""

    steps: int | None
    other: float


def relearned(
    steps: Sequence[int], shown: Sequence[float], hidden: Sequence[float], target: float
) -> Relearned:
    """The first step count at which the accuracy on the shown half reaches `target`, and the accuracy on the
    hidden half then (Lynch et al., 2024; Deeb and Roger, 2024). Raises ValueError without a point."""
    if not steps:
        raise ValueError("relearned: no points")
    for step, known, other in zip(steps, shown, hidden, strict=True):
        if known >= target:
            return Relearned(step, other)
    return Relearned(None, hidden[-1])
