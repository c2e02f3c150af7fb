"""Metrics of the unlearning field, as functions of token scores (docs/metrics.md).

The definitions are those of open-unlearning (Dorna et al., 2025), which follows TOFU (Maini et al., 2024),
MUSE (Shi et al., 2024) and the papers of the attacks. Its code was read and not copied.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from emulation.analysis.token_scores import TokenScores

TINY = 1e-10
MIN_K = 0.4  # share of the tokens that min-k counts; open-unlearning's configuration of TOFU
Values = NDArray[np.float64]


def probabilities(scores: Sequence[TokenScores]) -> Values:
    """P(response | prompt)^(1/tokens) = exp(-loss), by example."""
    return np.exp([-score.loss for score in scores])


def exact_memorization(score: TokenScores) -> float:
    """Share of a response's tokens that are the most likely ones (Tirumala et al., 2022); 0 without text."""
    hits = score.text().hit
    return float(hits.float().mean()) if len(hits) else 0.0


def extraction_strength(score: TokenScores) -> float:
    """1 - k/m: given the first k of m tokens, all others are the most likely ones; k is the smallest number.

    k is m - 1 at most, so that the value is 1/m if the last token is not known (Carlini et al., 2021).
    0 for a response without text.
    """
    hits = score.text().hit.tolist()
    if not hits:
        return 0.0
    known = sum(1 for _ in takewhile(bool, reversed(hits)))
    return max(known, 1) / len(hits)


def truth_ratios(correct: Sequence[TokenScores], perturbed: Sequence[Sequence[TokenScores]]) -> Values:
    """By example: wrong / correct, the probabilities of the perturbed answers and of the correct one.

    correct: the paraphrased answer; on questions about the world, the answer itself. wrong: the exponential
    of minus the mean loss of the perturbed answers (TOFU, section 2.2).
    """
    wrong = np.exp([-np.mean([score.loss for score in scores]) for scores in perturbed])
    ratios: Values = wrong / (probabilities(correct) + TINY)
    return ratios


def truth_ratio_forgotten(ratios: Values) -> float:
    """Mean of min(r, 1/r): 1 if wrong and correct answers are as likely. For forgotten data."""
    return float(np.minimum(ratios, 1 / (ratios + TINY)).mean())


def truth_ratio_kept(ratios: Values) -> float:
    """Mean of max(0, 1 - r): high if the correct answer is the likely one. For data that stay."""
    return float(np.maximum(0, 1 - ratios).mean())


def normalised_probabilities(correct: Sequence[TokenScores], wrong: Sequence[Sequence[TokenScores]]) -> float:
    """Mean of the correct answer's share of the probabilities of all options (TOFU: real authors, world)."""
    right = probabilities(correct)
    others = np.array([probabilities(scores).sum() for scores in wrong])
    return float((right / (right + others + TINY)).mean())


def forget_quality(ratios: Values, reference: Values) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test of the truth ratios against a reference model's."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(ratios, reference).pvalue)


def model_utility(values: Sequence[float]) -> float:
    """The harmonic mean of probability, ROUGE-L and truth ratio on each set that must stay; 0 if one is 0.

    Raises ValueError without a value.
    """
    if min(values) <= 0:
        return 0.0
    return len(values) / sum(1 / value for value in values)


# -- membership inference: each score is higher for an example that was less likely trained on ------------
def loss_score(score: TokenScores) -> float:
    """Mean nats per token (Yeom et al., 2018)."""
    return score.loss


def min_k_score(score: TokenScores, share: float = MIN_K) -> float:
    """Minus the mean log-probability of the least likely tokens (Shi et al., 2024)."""
    logp = score.text().logp
    count = max(1, int(len(logp) * share))
    return -float(logp.sort().values[:count].mean())


def zlib_score(score: TokenScores, text: str) -> float:
    """Loss per byte of the compressed response (Carlini et al., 2021)."""
    return score.loss / len(zlib.compress(text.encode()))


def attack_auc(members: Sequence[float], others: Sequence[float]) -> float:
    """Area under the ROC curve: the probability that a member has the lower score; ties count half.

    1: every member is recognised. 0.5: no better than chance.
    """
    lower, higher = np.array(members)[:, None], np.array(others)[None, :]
    return float((lower < higher).mean() + 0.5 * (lower == higher).mean())
