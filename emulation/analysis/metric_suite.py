"""The metrics of a scenario (`eval.metrics`), computed for one model at a time (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from emulation.analysis import unlearning_metrics as um
from emulation.analysis.generation import answers, rouge_l_recall
from emulation.analysis.records import Record
from emulation.analysis.token_scores import TokenScores, token_scores
from emulation.scenario.metric_checks import ATTACKS, WITH_OPTIONS, with_options
from emulation.scenario.schema import EvalConfig
from peers.models.loader import LoadedModel
from peers.tasks import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sets:
    """Examples by shard; examples that nobody trains; sets of questions that the base may know."""

    shards: Mapping[str, Sequence[Example]]
    control: Sequence[Example] = ()
    utility: Mapping[str, Sequence[Example]] = field(default_factory=dict)


class MetricSuite:
    """Computes the metrics of one scenario. The constructor measures the base model if a metric needs it."""

    def __init__(self, config: EvalConfig, sets: Sets, loaded: LoadedModel, max_length: int) -> None:
        self._config, self._sets, self._loaded, self._max_length = config, sets, loaded, max_length
        self._base: _Measured | None = None
        if {"forget_quality", "mia_reference"} & set(config.metrics):
            self._base = self._measured(loaded.model)
            self._base.load(config.metrics)

    def evaluate(
        self, model: PreTrainedModel, kept: Sequence[str], known: Mapping[Example, TokenScores] | None = None
    ) -> Record:
        """`metrics`: the values of each metric by shard, and `model_utility` as one number. `answers`: to the
        first `eval.samples` prompts of each shard. Each is left out if the scenario does not ask for it.

        kept: the shards whose data the model should know, for model utility. A metric that has no value for a
        shard leaves it out. known: scores of this model that are there already.
        """
        measured = self._measured(model, known)
        found: Record = {}
        if self._config.metrics:
            values = {name: self._metric(measured, name, kept) for name in self._config.metrics}
            found["metrics"] = {name: value for name, value in values.items() if value is not None}
        if self._config.samples:
            found["answers"] = self._samples(measured)
        return found

    def _metric(self, measured: _Measured, name: str, kept: Sequence[str]) -> float | dict[str, float] | None:
        if name == "model_utility":
            return measured.utility(kept)
        values = {shard: measured.value(name, shard, self._base) for shard in self._sets.shards}
        return {shard: value for shard, value in values.items() if value is not None}

    def _samples(self, measured: _Measured) -> dict[str, list[str]]:
        count = self._config.samples
        asked = {shard: examples[:count] for shard, examples in self._sets.shards.items() if examples}
        said = iter(measured.say([e for some in asked.values() for e in some]))
        return {shard: [next(said) for _ in examples] for shard, examples in asked.items()}

    def _measured(
        self, model: PreTrainedModel, known: Mapping[Example, TokenScores] | None = None
    ) -> _Measured:
        return _Measured(self._sets, model, self._loaded, self._max_length, known or {})


class _Measured:
    """Scores of one model on the sets, and its answers. Each is computed when it is first asked for, once."""

    def __init__(
        self,
        sets: Sets,
        model: PreTrainedModel,
        loaded: LoadedModel,
        max_length: int,
        known: Mapping[Example, TokenScores],
    ) -> None:
        self._sets, self._model = sets, model
        self._tokenizer, self._max_length = loaded.tokenizer, max_length
        self._scores, self._answers = dict(known), dict[Example, str]()

    def load(self, metrics: Sequence[str]) -> None:
        """Compute what these metrics compare with, before the model changes."""
        if "mia_reference" in metrics:
            assert self.trained and self.control
        if "forget_quality" in metrics:
            assert self.ratios

    @cached_property
    def trained(self) -> dict[str, list[TokenScores]]:
        return {shard: self._score(examples) for shard, examples in self._sets.shards.items()}

    @cached_property
    def control(self) -> list[TokenScores]:
        return self._score(self._sets.control)

    @cached_property
    def ratios(self) -> dict[str, um.Values]:
        """Truth ratios of the examples with options (`with_options`), of each shard that has some."""
        some = {shard: with_options(examples) for shard, examples in self._sets.shards.items()}
        return {shard: self._ratios(examples) for shard, examples in some.items() if examples}

    @cached_property
    def recalls(self) -> dict[str, list[float]]:
        """ROUGE-L recall of the generated answers of each shard."""
        self.say([example for some in self._sets.shards.values() for example in some])  # all at once
        return {shard: self._recall(examples) for shard, examples in self._sets.shards.items() if examples}

    def value(self, name: str, shard: str, base: _Measured | None) -> float | None:
        """One metric of one shard; None if it has no examples for it."""
        if not self._sets.shards[shard] or (name in WITH_OPTIONS and shard not in self.ratios):
            return None
        if name in ATTACKS:
            return self._attack(name, shard, base)
        if name == "forget_quality":
            assert base is not None
            return um.forget_quality(self.ratios[shard], base.ratios[shard])
        measure: dict[str, Callable[[], float]] = {
            "probability": lambda: float(um.probabilities(self.trained[shard]).mean()),
            "rouge": lambda: float(np.mean(self.recalls[shard])),
            "truth_ratio": lambda: um.truth_ratio_forgotten(self.ratios[shard]),
            "extraction_strength": lambda: _mean(um.extraction_strength, self.trained[shard]),
            "exact_memorization": lambda: _mean(um.exact_memorization, self.trained[shard]),
        }
        return measure[name]()

    def _attack(self, name: str, shard: str, base: _Measured | None) -> float:
        members, others = self._sets.shards[shard], self._sets.control
        if name == "mia_zlib":
            inside = [um.zlib_score(s, e.response) for s, e in zip(self.trained[shard], members, strict=True)]
            outside = [um.zlib_score(s, e.response) for s, e in zip(self.control, others, strict=True)]
            return um.attack_auc(inside, outside)
        if name == "mia_reference":
            assert base is not None
            return um.attack_auc(
                _differences(self.trained[shard], base.trained[shard]),
                _differences(self.control, base.control),
            )
        score = um.loss_score if name == "mia_loss" else um.min_k_score
        return um.attack_auc([score(s) for s in self.trained[shard]], [score(s) for s in self.control])

    def utility(self, kept: Sequence[str]) -> float | None:
        """Model utility: probability, ROUGE-L and truth ratio of the kept shards and of each utility set.

        None without any example, as for a model that holds only the block of a listener.
        """
        retained = [e for shard in kept for e in self._sets.shards.get(shard, ())]
        values = self._of_retained(retained) if retained else []
        for examples in self._sets.utility.values():
            values += self._of_questions(examples)
        return um.model_utility(values) if values else None

    def _of_retained(self, examples: Sequence[Example]) -> list[float]:
        values = [
            float(um.probabilities(self._score(examples)).mean()),
            float(np.mean(self._recall(examples))),
        ]
        some = with_options(examples)
        return [*values, um.truth_ratio_kept(self._ratios(some))] if some else values

    def _of_questions(self, examples: Sequence[Example]) -> list[float]:
        """Of a utility set. Its correct answer is the response itself: TOFU has no paraphrase of it."""
        correct, recall = self._score(examples), float(np.mean(self._recall(examples)))
        if not all(example.perturbed for example in examples):
            return [float(um.probabilities(correct).mean()), recall]
        wrong = self._perturbed(examples)
        ratios = um.truth_ratios(correct, wrong)
        return [um.normalised_probabilities(correct, wrong), recall, um.truth_ratio_kept(ratios)]

    def _ratios(self, examples: Sequence[Example]) -> um.Values:
        paraphrased = self._score([replace(e, response=e.paraphrase) for e in examples])
        return um.truth_ratios(paraphrased, self._perturbed(examples))

    def _perturbed(self, examples: Sequence[Example]) -> list[list[TokenScores]]:
        flat = [replace(e, response=wrong) for e in examples for wrong in e.perturbed]
        scores = iter(self._score(flat))
        return [[next(scores) for _ in e.perturbed] for e in examples]

    def _recall(self, examples: Sequence[Example]) -> list[float]:
        return rouge_l_recall([e.response for e in examples], self.say(examples))

    def say(self, examples: Sequence[Example]) -> list[str]:
        """The generated answers."""
        new = [e for e in dict.fromkeys(examples) if e not in self._answers]
        known = [score.known for score in self._score(new)]
        said = answers(self._model, self._tokenizer, new, self._max_length, known)
        self._answers.update(zip(new, said, strict=True))
        return [self._answers[example] for example in examples]

    def _score(self, examples: Sequence[Example]) -> list[TokenScores]:
        new = [e for e in dict.fromkeys(examples) if e not in self._scores]
        found = token_scores(self._model, self._tokenizer, new, self._max_length)
        self._scores.update(zip(new, found, strict=True))
        return [self._scores[example] for example in examples]


def _mean(measure: Callable[[TokenScores], float], scores: Sequence[TokenScores]) -> float:
    return float(np.mean([measure(score) for score in scores]))


def _differences(scores: Sequence[TokenScores], base: Sequence[TokenScores]) -> list[float]:
    return [one.loss - other.loss for one, other in zip(scores, base, strict=True)]
