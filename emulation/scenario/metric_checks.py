"""Checks of `eval.metrics` against the installed packages and the data, before any device starts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from emulation.scenario.schema import EvalConfig
from peers.errors import InputError
from peers.tasks import AnyExample, Example, texts

NEEDS = {"rouge": "rouge_score", "model_utility": "rouge_score"}  # packages
WITH_OPTIONS = ("truth_ratio", "forget_quality")  # need a paraphrased and perturbed answers
ATTACKS = ("mia_loss", "mia_min_k", "mia_zlib", "mia_reference")  # need examples that nobody trains
OF_IMAGES = ("mia_loss",)


def with_options(examples: Sequence[Example]) -> list[Example]:
    """The examples with a paraphrased answer and perturbed ones: in TOFU a part of the questions."""
    return [example for example in examples if example.paraphrase and example.perturbed]


def check_metrics(
    config: EvalConfig, shards: Sequence[Sequence[AnyExample]], control: Sequence[AnyExample]
) -> None:
    """Raises InputError for a metric whose package or whose examples are missing.

    shards: the training examples of each device. control: examples that nobody trains.
    """
    if not any(map(texts, shards)):
        for_texts = [name for name in config.metrics if name not in OF_IMAGES]
        if for_texts or config.samples:
            key, wanted = ("metrics", f" {for_texts[0]!r}") if for_texts else ("samples", "")
            raise InputError(
                f"eval.{key}:{wanted} needs texts, and the data are images; allowed: a data.kind of texts, "
                f"or eval.metrics = {[*OF_IMAGES]}"
            )
    options = any(with_options(texts(shard)) for shard in shards)
    for name in config.metrics:
        package = NEEDS.get(name)
        if package is not None and find_spec(package) is None:
            raise InputError(
                f"eval.metrics: {name!r} needs the package {package}; allowed: pip install 'unweft[metrics]'"
            )
        if name in WITH_OPTIONS and not options:
            raise InputError(
                f"eval.metrics: {name!r} needs paraphrased and perturbed answers, which this data does not "
                "have; allowed: data.kind = 'authors' or 'tofu'"
            )
        if name in ATTACKS and not control:
            raise InputError(
                f"eval.metrics: {name!r} needs examples that nobody trains; allowed: data.held_out above 0, "
                "or a data.kind with control examples"
            )
