"""The accuracy of the adapters that a run exported, measured anew, against its last evaluation."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel

from emulation.analysis import evaluator
from emulation.scenario.loading import load
from emulation.scenario.schema import Scenario
from peers.models.loader import load_model

ONE_ANSWER = 1.001  # with the rounding of a float


def last_evaluations(run: Path) -> dict[str, dict[str, float]]:
    """The accuracy of each device on the examples of each device, in its last evaluated round."""
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["tag"] == "round" and "accuracy" in line]
    return {line["device"]: line["accuracy"] for line in sorted(rounds, key=lambda line: line["round"])}


def training_examples(scenario: Scenario) -> evaluator.ExampleSet:
    """The training examples of a scenario, as the evaluator has them."""
    chosen, loaded = evaluator.choose_examples(scenario), load_model(scenario.model)
    return evaluator._example_sets(chosen, loaded, scenario.data.max_length)[0]


def exported_accuracies(run: Path, devices: list[str]) -> dict[str, dict[str, float]]:
    """The same of the exported adapters, as PEFT loads them."""
    scenario = load(run / "scenario.toml")
    examples = training_examples(scenario)
    found = {}
    for device in devices:
        base = load_model(scenario.model).model
        with warnings.catch_warnings():  # PEFT asks the model for what transformers will remove
            warnings.simplefilter("ignore", FutureWarning)
            model: Any = PeftModel.from_pretrained(base, run / "adapters" / device)
        found[device] = examples.record(examples.score(model.eval()))["accuracy"]
    return found


def assert_as_evaluated(run: Path, devices: list[str]) -> None:
    """Every exported adapter answers as the last evaluated round did, but for one answer of a shard."""
    scenario = load(run / "scenario.toml")
    answers = {shard: end - first for _, shard, first, end in training_examples(scenario).parts}
    before, after = last_evaluations(run), exported_accuracies(run, devices)
    for device in devices:
        assert before[device].keys() == after[device].keys()
        for shard, accuracy in after[device].items():
            apart = abs(accuracy - before[device][shard]) * answers[shard]
            assert apart <= ONE_ANSWER, (device, shard, before[device][shard], accuracy)
