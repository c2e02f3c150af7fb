"""The metrics against values that open-unlearning's own functions gave on the same tensors.

open-unlearning printed the numbers, at commit d3d7cf9e6b3c125d16687d4232680d8d83548f1a (docs/metrics.md,
"Beside open-unlearning"). If a test fails, do not replace its number by one that unweft prints.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any, get_args

import pytest

from emulation.analysis import unlearning_metrics as um
from emulation.analysis.metric_suite import MetricSuite
from emulation.analysis.token_scores import TokenScores, token_scores
from emulation.scenario.schema import EvalConfig, Metric
from peers.models.loader import LoadedModel
from peers.tasks import Example
from tests.support import fixed_logits

ROUGE = {"rouge", "model_utility"}  # metrics of generated texts
EXPECTED: dict[str, Any] = {
    "probability": {"d0": 0.26159078, "d1": 0.21700512},
    "rouge": {"d0": 0.83730159, "d1": 0.80095238},
    "truth_ratio": {"d0": 0.59231815, "d1": 0.42553458},
    "forget_quality": {"d0": 0.93073593, "d1": 0.87301587},
    "extraction_strength": {"d0": 0.79563492, "d1": 0.63523810},
    "exact_memorization": {"d0": 0.83730159, "d1": 0.80095239},
    "mia_loss": {"d0": 0.86666667, "d1": 0.92},
    "mia_min_k": {"d0": 0.7, "d1": 0.68},
    "mia_zlib": {"d0": 0.93333333, "d1": 0.8},
    "mia_reference": {"d0": 0.66666667, "d1": 0.72},
    "model_utility": 0.58985232,
}
SCORES = {  # of the examples of d1
    "mia_loss": [1.243371, 1.694059, 1.185434, 1.860772, 1.886000],
    "mia_min_k": [3.263763, 1.673941, 1.854992, 4.610602, 4.153788],
    "mia_zlib": [0.033605, 0.154005, 0.045594, 0.058149, 0.042864],
    "mia_reference": [-1.437340, -3.039644, -1.981430, -0.411531, -1.188042],
}
TRUTH_RATIO_KEPT = 0.41607523  # of d1; their aggregator true_better
RECALLS = [
    ("The author lives in the old city.", "Authors living in cities", 0.57142857),
    ("a b c d", "d c b a", 0.25),
    ("She was born in 1931, in Kraków!", "she was born in 1913 in Krakow", 0.625),
    (
        "He writes novels; novels of the sea.",
        "He writes novels of the sea, novels, and the sea again",
        0.85714286,
    ),
    ("Paris", "", 0.0),
    ("well-known authors' houses", "well known author house", 1.0),
]
MODEL, BASE = fixed_logits.model(0.0, 4.0), fixed_logits.model(1.0, 2.0)
needs_rouge = pytest.mark.skipif(
    importlib.util.find_spec("rouge_score") is None, reason="needs unweft[metrics]"
)


def scores(examples: list[Example], model=MODEL) -> list[TokenScores]:
    return token_scores(model, fixed_logits.tokenizer(), examples, fixed_logits.LONGEST)


def measured(names: list[str]) -> dict[str, Any]:
    """The metrics of MODEL, which should know the data of d1. BASE is the model before training."""
    loaded = LoadedModel(BASE, fixed_logits.tokenizer(), "fixed", "", ())
    config = EvalConfig.model_validate({"metrics": names})
    suite = MetricSuite(config, fixed_logits.sets(), loaded, fixed_logits.LONGEST)
    found: dict[str, Any] = suite.evaluate(MODEL, ["d1"])["metrics"]
    return found


def test_every_metric_has_a_value_of_open_unlearning():
    assert set(EXPECTED) == set(get_args(Metric))


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in ROUGE])
def test_a_metric_of_fixed_logits_is_that_of_open_unlearning(name):
    assert measured([name])[name] == pytest.approx(EXPECTED[name], abs=1e-4)


@needs_rouge
@pytest.mark.parametrize("name", sorted(ROUGE))
def test_a_metric_of_generated_texts_is_that_of_open_unlearning(name):
    assert measured([name])[name] == pytest.approx(EXPECTED[name], abs=1e-4)


def test_the_scores_of_the_attacks_are_those_of_open_unlearning():
    examples = list(fixed_logits.sets().shards["d1"])
    found, base = scores(examples), scores(examples, BASE)
    ours = {
        "mia_loss": [um.loss_score(one) for one in found],
        "mia_min_k": [um.min_k_score(one) for one in found],
        "mia_zlib": [um.zlib_score(one, e.response) for one, e in zip(found, examples, strict=True)],
        "mia_reference": [one.loss - other.loss for one, other in zip(found, base, strict=True)],
    }
    assert {name: pytest.approx(values, abs=1e-4) for name, values in SCORES.items()} == ours


def test_the_truth_ratio_of_kept_data_is_that_of_open_unlearning():
    examples = fixed_logits.sets().shards["d1"]
    paraphrased = scores([replace(example, response=example.paraphrase) for example in examples])
    perturbed = [scores([replace(e, response=wrong) for wrong in e.perturbed]) for e in examples]
    kept = um.truth_ratio_kept(um.truth_ratios(paraphrased, perturbed))
    assert kept == pytest.approx(TRUTH_RATIO_KEPT, abs=1e-4)


@needs_rouge
@pytest.mark.parametrize(("expected", "said", "recall"), RECALLS)
def test_the_recall_of_a_text_is_that_of_open_unlearning(expected, said, recall):
    from emulation.analysis.generation import rouge_l_recall

    assert rouge_l_recall([expected], [said]) == pytest.approx([recall], abs=1e-4)
