"""Metrics of unlearning and generated answers around one event, from the evaluations of its survivors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from emulation.analysis.records import Record, write_whole

if TYPE_CHECKING:
    from peers.tasks import Example

ASKED = "samples.json"  # of a run folder: the prompts whose answers evaluations.jsonl has
UTILITY = "model_utility"  # one number of a model, not one for each shard
Stages = Mapping[str, Sequence[Record]]  # "before", "deleted", ... -> the survivors' evaluations


def write_asked(folder: Path, examples: Mapping[str, Sequence[Example]], count: int) -> None:
    """Write the prompts and the expected responses of the first `count` examples of each shard."""
    asked = {
        shard: [{"prompt": e.prompt, "expected": e.response} for e in some[:count]]
        for shard, some in examples.items()
    }
    write_whole(folder / ASKED, json.dumps(asked, indent=1, ensure_ascii=False) + "\n")


def read_asked(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The prompts of `write_asked`; empty if the run generated no answers."""
    path = folder / ASKED
    found: dict[str, list[dict[str, str]]] = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    )
    return found


def metrics(stages: Stages, device: str, survivors: Sequence[str]) -> dict[str, Record]:
    """By metric: {"device": by stage, "survivors": by stage}, means over survivors and shards.

    device: the data of the event's device. survivors: their own data. A stage without a value is left out.
    Model utility is one number of each survivor's model, under "survivors".
    """
    names = dict.fromkeys(name for some in stages.values() for e in some for name in e.get("metrics", {}))
    found: dict[str, Record] = {}
    for name in names:
        asked = {"device": [device], "survivors": list(survivors)}
        found[name] = {whose: _by_stage(stages, name, shards) for whose, shards in asked.items()}
        if name == UTILITY:
            found[name]["device"] = {}
    return found


def _by_stage(stages: Stages, name: str, shards: Sequence[str]) -> dict[str, float]:
    means = {}
    for stage, evaluations in stages.items():
        values: list[float] = []
        for evaluation in evaluations:
            value = evaluation.get("metrics", {}).get(name)
            if isinstance(value, Mapping):
                values += [float(value[shard]) for shard in shards if shard in value]
            elif value is not None:
                values.append(float(value))
        if values:
            means[stage] = fmean(values)
    return means


def answers(
    stages: Stages, shards: Sequence[str], asked: Mapping[str, Sequence[Mapping[str, str]]]
) -> list[Record]:
    """What the first survivor answers at each stage: a row for each prompt of each of the shards."""
    said = {stage: some[0].get("answers", {}) for stage, some in stages.items() if some}
    rows = []
    for shard in shards:
        for number, question in enumerate(asked.get(shard, ())):
            texts = {s: by[shard][number] for s, by in said.items() if number < len(by.get(shard, ()))}
            if texts:
                rows.append({"shard": shard, **question, "answers": texts})
    return rows
