"""The metrics of unlearning against values computed by hand."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch

from emulation.analysis import unlearning_metrics as um
from emulation.analysis.token_scores import TokenScores


def scores(probabilities, hits=None, ends=False):
    p = torch.tensor(probabilities)
    return TokenScores(p.log(), torch.tensor(hits or [True] * len(probabilities)), ends)


def test_probability_is_the_geometric_mean_with_the_end_token():
    assert um.probabilities([scores([0.5, 0.125], ends=True)]) == pytest.approx([0.25])


@pytest.mark.parametrize(
    ("hits", "strength", "memorised"),
    [
        ([True, True, True, True], 1.0, 1.0),
        ([False, True, True, True], 0.75, 0.75),
        ([True, True, False, True], 0.25, 0.75),
        ([True, True, True, False], 0.25, 0.75),  # k is 3 at most
    ],
)
def test_extraction_needs_the_whole_rest_and_memorisation_counts_tokens(hits, strength, memorised):
    score = scores([0.5] * 4, hits)
    assert um.extraction_strength(score) == strength
    assert um.exact_memorization(score) == memorised
    ended = scores([0.5] * 5, [*hits, False], ends=True)  # the end token does not count
    assert (um.extraction_strength(ended), um.exact_memorization(ended)) == (strength, memorised)


def test_a_response_that_is_only_the_end_token_is_not_known():
    score = scores([0.5], [True], ends=True)
    assert (um.extraction_strength(score), um.exact_memorization(score)) == (0.0, 0.0)


def test_truth_ratio_compares_mean_losses_of_wrong_answers_with_the_paraphrase():
    paraphrased, perturbed = [scores([0.5])], [[scores([0.1]), scores([0.4])]]
    ratios = um.truth_ratios(paraphrased, perturbed)
    assert ratios == pytest.approx([math.sqrt(0.1 * 0.4) / 0.5])
    assert um.truth_ratio_forgotten(ratios) == pytest.approx(0.4)
    assert um.truth_ratio_kept(ratios) == pytest.approx(0.6)
    assert um.truth_ratio_forgotten(np.array([4.0, 0.5])) == pytest.approx((0.25 + 0.5) / 2)
    assert um.truth_ratio_kept(np.array([4.0, 0.5])) == pytest.approx(0.25)


def test_a_normalised_probability_is_the_share_of_all_options():
    wrong = [[scores([0.1]), scores([0.2])], [scores([0.25]), scores([0.5])]]
    assert um.normalised_probabilities([scores([0.3]), scores([0.25])], wrong) == pytest.approx(
        (0.3 / 0.6 + 0.25 / 1.0) / 2
    )


def test_forget_quality_is_one_for_equal_ratios_and_small_for_others():
    same = np.linspace(0.1, 1, 20)
    assert um.forget_quality(same, same) == 1.0
    # The largest distance of the distribution functions is 1: p = 2 / C(40, 20).
    assert um.forget_quality(same, same + 5) == pytest.approx(2 / math.comb(40, 20))


def test_model_utility_is_a_harmonic_mean():
    assert um.model_utility([0.5, 1.0]) == pytest.approx(2 / 3)
    assert um.model_utility([0.5, 0.0]) == 0.0


def test_attack_scores_are_higher_for_less_likely_examples():
    score = scores([0.5, 0.25, 0.125, 0.9, 0.8, 1.0], ends=True)
    assert um.loss_score(score) == pytest.approx(-np.mean(np.log([0.5, 0.25, 0.125, 0.9, 0.8, 1.0])))
    assert um.min_k_score(score) == pytest.approx(-np.mean(np.log([0.125, 0.25])))  # 0.4 of 5 tokens
    assert um.zlib_score(score, "an answer") == pytest.approx(score.loss / len(zlib.compress(b"an answer")))


def test_the_auc_is_one_if_each_member_has_the_lower_score():
    assert um.attack_auc([1.0, 2.0], [3.0, 4.0]) == 1.0
    assert um.attack_auc([3.0, 4.0], [1.0, 2.0]) == 0.0
    assert um.attack_auc([1.0, 2.0], [1.0, 2.0]) == 0.5
    assert um.attack_auc([1.0, 3.0], [2.0]) == 0.5
