"""The attacks against distributions whose answer is known."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from emulation.experiments.attacks import (
    Relearned,
    assign,
    auc_by_rank,
    lira,
    logit_confidence,
    pooled,
    relearned,
)
from emulation.experiments.statistics import auc

Halves = NDArray[np.bool_]


def scores(members: Halves, shift: float, seed: int = 1) -> NDArray[np.float64]:
    """Gaussian scores; examples differ far more from each other than membership moves one of them."""
    draw = np.random.default_rng(seed)
    difficulty = 5 * draw.normal(size=members.shape[1])
    return difficulty + draw.normal(size=members.shape) + shift * members


def test_lira_reaches_the_auc_of_the_likelihood_ratio_of_two_gaussians() -> None:
    members = assign(32, 200, seed=0)
    found = pooled(lira(scores(members, 1.0), members), members)
    assert found.members == found.others == 3200
    assert found.auc == pytest.approx(NormalDist().cdf(1 / math.sqrt(2)), abs=0.03)


def test_lira_sees_what_a_threshold_on_the_score_alone_does_not() -> None:
    members = assign(32, 200, seed=0)
    seen = scores(members, 1.0)
    alone = auc_by_rank(seen[members], seen[~members])
    found = pooled(lira(seen, members), members).auc
    assert alone is not None and found is not None
    assert alone < 0.6 < 0.7 < found


def test_a_model_without_a_trace_gives_a_half() -> None:
    members = assign(16, 1000, seed=0)
    found = pooled(lira(scores(members, 0.0), members), members)
    assert found.members == 8000 and found.auc == pytest.approx(0.5, abs=0.03)
    assert found.deviation == pytest.approx(0.01, abs=0.005)  # 8000 independent pairs would give 0.005
    assert found.tpr == pytest.approx(0.01, abs=0.01)
    assert found.p is not None and found.p > 0.05


def test_the_errors_are_those_of_repeated_draws() -> None:
    """The spread of the AUC and of the TPR over new data is near the standard errors of one draw."""
    members = assign(16, 150, seed=0)
    draws = [pooled(lira(scores(members, 1.0, seed), members), members) for seed in range(24)]
    for value, error in (("auc", "deviation"), ("tpr", "tpr_deviation")):
        spread = np.std([getattr(found, value) for found in draws], ddof=1)
        errors = [getattr(found, error) for found in draws]
        assert np.mean(errors) == pytest.approx(spread, rel=0.4)
        assert (
            0.4 * spread < min(errors) and max(errors) < 2.5 * spread
        )  # each of them, and not the mean alone
    assert all(found.p is not None and found.p < 0.01 for found in draws)


def test_a_perfect_attack_has_the_smallest_p() -> None:
    members = assign(16, 40, seed=0)
    found = pooled(lira(scores(members, 30.0), members), members)
    assert (found.auc, found.deviation, found.p) == (1.0, 0.0, 0.0)


def test_a_rate_of_a_thousand_others_has_an_error() -> None:
    members = assign(20, 100, seed=0)
    found = pooled(lira(scores(members, 1.0), members), members)
    assert found.others == 1000 and found.tpr_deviation is not None and 0 < found.tpr_deviation < 0.2


@pytest.mark.parametrize("models", [6, 8, 16])
def test_few_shadow_models_give_a_half_without_a_trace(models: int) -> None:
    """With all models of the other kind as shadow models it would be 0.46, 0.48 and 0.49."""
    members = assign(models, 20_000, seed=0)
    ratios = lira(scores(members, 0.0), members)
    assert auc_by_rank(ratios[members], ratios[~members]) == pytest.approx(0.5, abs=0.01)


def test_a_rate_at_one_percent_needs_a_thousand_others() -> None:
    members = assign(8, 100, seed=0)
    found = pooled(lira(scores(members, 1.0), members), members)
    assert found.others == 400 and found.tpr is None and found.tpr_deviation is None


def test_every_example_is_in_half_of_the_models() -> None:
    members = assign(16, 30, seed=3)
    assert (members.sum(axis=0) == 8).all() and len({*members.sum(axis=1)}) > 1


def test_the_target_is_no_shadow_model_of_its_own() -> None:
    members = np.array([[True], [True], [True], [False], [False], [False]])
    ratios = lira(np.array([[9.0], [1.0], [1.2], [0.0], [0.1], [-0.1]]), members)
    again = lira(np.array([[5.0], [1.0], [1.2], [0.0], [0.1], [-0.1]]), members)
    assert not np.isnan(ratios).any() and ratios[0] > again[0]
    assert np.isnan(lira(np.array([[1.0], [1.0], [0.0], [0.0]]), members[1:5])).all()  # one other of a kind


def test_confidences_have_finite_logits() -> None:
    found = logit_confidence(np.array([0.0, math.log(2), 50.0]))
    assert np.isfinite(found).all()
    assert found[1] == pytest.approx(0.0) and found[0] > 0 > found[2]


def test_ranks_give_the_auc_of_all_pairs() -> None:
    draw = np.random.default_rng(0)
    inside, outside = draw.integers(0, 5, 30).astype(float), draw.integers(0, 5, 50).astype(float)
    assert auc_by_rank(inside, outside) == pytest.approx(auc(list(-inside), list(-outside)))
    assert auc_by_rank(inside, outside[:0]) is None


def test_relearning_counts_steps_to_the_target_and_reports_the_hidden_half() -> None:
    assert relearned([0, 5, 10], [0.1, 0.95, 1.0], [0.0, 0.3, 0.2], 0.9) == Relearned(5, 0.3)
    assert relearned([0, 5], [0.1, 0.5], [0.0, 0.2], 0.9) == Relearned(None, 0.2)
    with pytest.raises(ValueError, match="no points"):
        relearned([], [], [], 0.9)
