"""The metrics of a scenario on a small model, and the checks before a run."""

from __future__ import annotations

import importlib.util
from typing import get_args

import pytest
import torch
from torch.nn import functional

from emulation.analysis import generation, metric_suite
from emulation.analysis.event_metrics import answers as answer_rows
from emulation.analysis.event_metrics import metrics
from emulation.analysis.generation import answers
from emulation.analysis.metric_suite import MetricSuite, Sets
from emulation.analysis.records import Record
from emulation.analysis.token_scores import token_scores
from emulation.scenario import metric_checks
from emulation.scenario.metric_checks import check_metrics
from emulation.scenario.schema import EvalConfig, Metric
from peers.errors import InputError
from peers.tasks import Example, encode, predictions, question
from tests.support.learners import small_loaded

ASKED = question("alpha lives in", "red", "a red", ("blue", "green"))
OTHER = question("beta lives in the", "home of green", "green", ("one", "two"))


def test_token_scores_are_the_losses_of_the_task():
    loaded = small_loaded()
    examples = [ASKED, OTHER, Example("gamma is a", "two three")]
    found = token_scores(loaded.model, loaded.tokenizer, examples, 32)
    with torch.no_grad():
        logits, wanted = predictions(loaded.model, encode(examples, loaded.tokenizer, 32))
    assert [len(s.logp) for s in found] == [2, 4, 2]  # the first two end
    assert [s.ends for s in found] == [True, True, False]
    nats = functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
    expected = nats.sum(dim=1).tolist()
    assert [s.loss * len(s.logp) for s in found] == pytest.approx(expected, rel=1e-5)
    for row, score in enumerate(found):
        places = wanted[row] >= 0
        assert score.hit.tolist() == (logits[row].argmax(-1) == wanted[row])[places].tolist()


def test_answers_are_generated_in_the_order_of_the_questions():
    loaded = small_loaded()
    both = answers(loaded.model, loaded.tokenizer, [OTHER, ASKED], 32)
    alone = [answers(loaded.model, loaded.tokenizer, [one], 32)[0] for one in (OTHER, ASKED)]
    assert both == alone and any(both)  # padding at the left changes nothing


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "bart", "gemma3-vision"])
def test_prompts_with_a_common_beginning_get_the_answers_that_each_gets_alone(family):
    loaded = small_loaded(family)
    start = "alpha beta gamma delta one two three four in the"
    asked = [Example(f"{start} {end}", "red green") for end in ("home of", "lives", "is a red", "of")]
    alone = [answers(loaded.model, loaded.tokenizer, [one], 40)[0] for one in asked]
    assert answers(loaded.model, loaded.tokenizer, asked, 40) == alone


def test_an_answer_begins_with_the_tokens_that_are_known_to_be_the_most_likely_ones(monkeypatch):
    loaded = small_loaded()
    start = "alpha beta gamma delta one two three four in the"
    prompts = [f"{start} {end}" for end in ("home of", "lives in", "is a red", "of")]
    greedy = answers(loaded.model, loaded.tokenizer, [Example(p, "red green blue") for p in prompts], 40)
    assert len(set(greedy)) > 1 and all(greedy)
    # Responses whose first tokens are right: all of them, two, none.
    words = [text.split() for text in greedy]
    said = [" ".join(words[0][:3]), " ".join([*words[1][:2], "home"]), "home", " ".join(words[3][:2])]
    examples = [Example(p, text) for p, text in zip(prompts, said, strict=True)]
    known = [s.known for s in token_scores(loaded.model, loaded.tokenizer, examples, 40)]
    assert known[0] == 3 and known[1] >= 2 and known[3] == 2
    with_known = answers(loaded.model, loaded.tokenizer, examples, 40, known)
    assert with_known == answers(loaded.model, loaded.tokenizer, examples, 40)
    steps = []
    generate = loaded.model.generate

    def counted(**given):
        steps.append(given["max_new_tokens"])
        return generate(**given)

    monkeypatch.setattr(loaded.model, "generate", counted)
    ending = [Example(p, text, ends=True) for p, text in zip(prompts, said, strict=True)]
    whole = answers(loaded.model, loaded.tokenizer, ending[:1], 40, [4])  # with its end token
    assert whole == said[:1] and steps == []
    answers(loaded.model, loaded.tokenizer, ending, 40, [4, 2, 0, 1])
    assert steps == [2 + generation.MORE]


def test_the_answers_are_greedy_whatever_the_model_s_generation_settings_are():
    loaded = small_loaded()
    expected = answers(loaded.model, loaded.tokenizer, [ASKED, OTHER], 32)
    loaded.model.generation_config.repetition_penalty = 5.0
    loaded.model.generation_config.num_beams = 3
    loaded.model.generation_config.no_repeat_ngram_size = 1
    assert answers(loaded.model, loaded.tokenizer, [ASKED, OTHER], 32) == expected


def test_a_model_that_should_know_nothing_has_no_utility():
    suite = MetricSuite(EvalConfig(metrics=("model_utility",)), Sets({"d0": []}), small_loaded(), 32)
    assert suite.evaluate(small_loaded().model, ["d0"]) == {"metrics": {}}


def test_each_metric_has_a_value_for_each_shard_with_examples(monkeypatch):
    # Without the package rouge-score: the generated words are compared whole.
    monkeypatch.setattr(metric_suite, "rouge_l_recall", lambda a, b: [0.5] * len(a))
    names = list(get_args(Metric))
    config = EvalConfig(metrics=tuple(names), samples=1)
    loaded = small_loaded()
    sets = Sets({"d0": [ASKED, OTHER], "d1": []}, [question("delta is a", "blue")], {"world": [OTHER]})
    suite = MetricSuite(config, sets, loaded, 32)
    whole = suite.evaluate(loaded.model, ["d0"])
    found = whole["metrics"]
    assert list(found) == names
    shards = {name: value for name, value in found.items() if name != "model_utility"}
    assert all(set(value) == {"d0"} and 0 <= value["d0"] <= 1 for value in shards.values())
    assert 0 < found["model_utility"] < 1
    assert found["forget_quality"]["d0"] == 1.0  # the model is still the base
    assert found["mia_reference"]["d0"] == 0.5
    assert set(whole["answers"]) == {"d0"}


def test_truth_ratios_are_those_of_the_questions_with_options(monkeypatch):
    monkeypatch.setattr(metric_suite, "rouge_l_recall", lambda a, b: [0.5] * len(a))
    loaded = small_loaded()
    config = EvalConfig(metrics=("truth_ratio", "forget_quality", "model_utility"))

    without = Example("gamma is a", "two three")
    sets = Sets({"all": [ASKED], "some": [ASKED, without], "none": [without]})
    suite = MetricSuite(config, sets, loaded, 32)
    found = {shard: suite.evaluate(loaded.model, [shard])["metrics"] for shard in sets.shards}
    for name in ("truth_ratio", "forget_quality"):
        assert found["all"][name].keys() == {"all", "some"}
        assert found["all"][name]["some"] == pytest.approx(found["all"][name]["all"])
    assert found["some"]["model_utility"] == 0 < found["none"]["model_utility"]  # the ratio of ASKED is 0


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("truth_ratio", "needs paraphrased and perturbed answers.*allowed: data.kind = 'authors' or 'tofu'"),
        ("mia_loss", "needs examples that nobody trains; allowed: data.held_out"),
    ],
)
def test_a_metric_without_its_examples_is_refused(metric, said):
    check_metrics(EvalConfig(metrics=("probability",)), [[Example("a", "b")]], [])
    with pytest.raises(InputError, match=said):
        check_metrics(EvalConfig.model_validate({"metrics": [metric]}), [[Example("a", "b")]], [])


def test_a_metric_without_its_package_is_refused(monkeypatch):
    monkeypatch.setattr(metric_checks, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'rouge' needs the package rouge_score; allowed: pip install"):
        check_metrics(EvalConfig(metrics=("rouge",)), [[ASKED]], [ASKED])


@pytest.mark.skipif(importlib.util.find_spec("rouge_score") is None, reason="needs unweft[metrics]")
def test_rouge_recall_counts_stems_in_order():
    from emulation.analysis.generation import rouge_l_recall

    assert rouge_l_recall(["the cats sat down", "a b c d"], ["the cat sat", "d c b a"]) == [0.75, 0.25]


def test_metrics_of_an_event_are_means_over_survivors_and_their_data():
    def line(d2: float, own: float, utility: float):
        return {"metrics": {"rouge": {"d0": own, "d1": own, "d2": d2}, "model_utility": utility}}

    stages = {
        "before": [line(1.0, 0.8, 0.5), line(0.6, 0.6, 0.7)],
        "deleted": [line(0.1, 0.5, 0.4)],
        "end": [],
    }
    assert metrics(stages, "d2", ["d0", "d1"]) == {
        "rouge": {
            "device": {"before": 0.8, "deleted": 0.1},
            "survivors": {"before": pytest.approx(0.7), "deleted": 0.5},
        },
        "model_utility": {"device": {}, "survivors": {"before": pytest.approx(0.6), "deleted": 0.4}},
    }


def test_answers_of_an_event_are_those_of_the_first_survivor():
    first, second = {"answers": {"d2": ["yes"]}}, {"answers": {"d2": ["no"]}}
    stages: dict[str, list[Record]] = {"before": [first, second], "deleted": [{}]}
    asked = {"d2": [{"prompt": "?", "expected": "yes"}], "d0": []}
    assert answer_rows(stages, ["d2", "d0"], asked) == [
        {"shard": "d2", "prompt": "?", "expected": "yes", "answers": {"before": "yes"}}
    ]
