"""Compares runs that have ended with centralised LoRA training on the same data, with the same steps.

    python -m emulation.experiments.centralised RUN [RUN ...]

One learner trains on the data of all devices that ended the run, with as many steps as one device took. Its
batch is that of all devices together, and so is its rank. It never sees the data of a device that left: it is
an oracle for them too.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from coordinator_free.identifiers import BlockKey
from emulation.analysis.records import load
from emulation.experiments import tables
from emulation.experiments.aggregate import to_record
from emulation.experiments.paired import difference
from emulation.experiments.statistics import auc, interval
from emulation.scenario.schema import Scenario
from peers import plugins
from peers.errors import InputError
from peers.learning.learner import Learner
from peers.lora.bases import Recipe
from peers.lora.kinds import KINDS
from peers.models.loader import LoadedModel, load_model
from peers.privacy_config import PrivacyConfig
from peers.tasks import AnyExample, Batch, Task, make_task, score_examples
from peers.unlearning.saved_model import load_adapter

Scores = dict[str, float | None]  # by COLUMNS
COLUMNS = ("devices' data", "held-out", "control", "leavers' data", "AUC")


def compare(folder: Path, console: Console) -> dict[str, Scores]:
    """Print and return accuracies (and AUC) of the run's first adapter and of centralised training.

    AUC: membership inference by loss. Members are the leavers' examples, non-members the control examples.
    Raises InputError if the run has no adapters, or has the kind of adapter `vera`.
    """
    run = load(folder)
    scenario = run.scenario
    if KINDS[scenario.adapter.kind].gated:
        raise InputError(
            f"{folder}: adapter.kind: {scenario.adapter.kind!r} trains one number a row at any rank, so "
            "centralised training would train fewer numbers than the devices together; allowed: another kind"
        )
    plugins.load(scenario.plugins)
    present = [d for d in run.devices if (folder / "adapters" / d).is_dir()]
    if not present:
        raise InputError(f"{folder}: has no adapters; allowed: the folder of a run that has ended")
    task = make_task(scenario.device_config())
    sets = example_sets(task, present, [d for d in run.devices if d not in present])
    found = {
        "decentralised": _scores(_exported(scenario, folder / "adapters" / present[0]), sets, scenario),
        "centralised": _scores(_trained(scenario, sets["devices' data"], len(present)), sets, scenario),
    }
    _print(found, console)
    return found


def example_sets(task: Task, present: Sequence[str], gone: Sequence[str]) -> dict[str, list[AnyExample]]:
    """The examples to score, by COLUMNS."""
    return {
        "devices' data": [e for device in present for e in task.train_examples(device)],
        "held-out": [e for device in present for e in task.other_wording(device)],
        "control": list(task.control_examples()),
        "leavers' data": [e for device in gone for e in task.train_examples(device)],
    }


def _exported(scenario: Scenario, adapter: Path) -> LoadedModel:
    loaded = load_model(scenario.model)
    with warnings.catch_warnings():
        # PEFT 0.21 reads a property that transformers 5 calls deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        model: Any = load_adapter(loaded.model, adapter)
    merged = model.merge_and_unload() if KINDS[scenario.adapter.kind].dense else model
    return replace(loaded, model=merged.eval())


def _trained(scenario: Scenario, examples: Sequence[AnyExample], devices: int) -> LoadedModel:
    loaded, config = load_model(scenario.model), scenario.device_config()
    modules = tuple(module.name for module in Recipe.make(loaded, config).modules)
    loaded = replace(loaded, target_modules=modules)
    rank = config.adapter.rank
    ranks = rank * devices if isinstance(rank, int) else {group: r * devices for group, r in rank.items()}
    merged = config.model_copy(
        update={
            "adapter": config.adapter.model_copy(update={"rank": ranks, "max_devices": 1}),
            "data": config.data.model_copy(update={"batch": config.data.batch * devices}),
            "privacy": PrivacyConfig(),
            "train": config.train.model_copy(update={"logit_adjustment": 0.0}),  # it has the labels of all
        }
    )
    learner = Learner(loaded, merged, loaded.encode(examples, config.data.max_length), "centralised")
    learner.set_own(BlockKey("centralised", 0), 0)
    for number in range(config.round.count):
        learner.train(number, config.round.local_steps, rehearse=False)
    return replace(loaded, model=learner.model)


def _scores(loaded: LoadedModel, sets: dict[str, list[AnyExample]], scenario: Scenario) -> Scores:
    found: Scores = {}
    losses: dict[str, list[float]] = {}
    for name, examples in sets.items():
        if not examples:
            found[name], losses[name] = None, []
            continue
        batch: Batch = loaded.encode(examples, scenario.data.max_length)
        known, loss, _ = score_examples(loaded.model, batch)
        found[name], losses[name] = float(known.float().mean()), loss.tolist()
    found["AUC"] = auc(losses["leavers' data"], losses["control"])
    return found


def _print(found: dict[str, Scores], console: Console) -> None:
    made = _table("accuracy at the end, and membership inference of the leavers")
    for name, scores in found.items():
        made.add_row(name, *(_shown(scores[column]) for column in COLUMNS))
    console.print(made)


def summarise(found: Sequence[dict[str, Scores]], console: Console) -> None:
    """Print means over runs with 95 % t intervals, and the paired difference of both trainings.

    Runs that differ in the seed alone are independent; the caller has to know that they are such runs.
    """
    made = _table(f"means of {len(found)} runs, with 95 % t intervals")
    values = {name: [run[name] for run in found] for name in found[0]}
    pairs = list(zip(values["decentralised"], values["centralised"], strict=True))
    values["difference"] = [{c: difference(a[c], b[c]) for c in COLUMNS} for a, b in pairs]
    for name, runs in values.items():
        known = {c: [value for run in runs if (value := run[c]) is not None] for c in COLUMNS}
        made.add_row(name, *(tables.spread(to_record(interval(known[c])), " ") for c in COLUMNS))
    console.print(made)


def _table(title: str) -> Table:
    made = tables.table(title)
    for head in ("training", *COLUMNS):
        made.add_column(head, justify="left" if head == "training" else "right")
    return made


def _shown(value: Any) -> str:
    return tables.DASH if value is None else f"{value:.3f}"


def main() -> None:
    """Command line: see --help."""
    parser = argparse.ArgumentParser(prog="python -m emulation.experiments.centralised", description=__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="folder of a run that has ended")
    torch.set_num_threads(1)
    console = Console()
    try:
        found = [compare(folder, console) for folder in parser.parse_args().run]
        if len(found) > 1:
            summarise(found, console)
    except InputError as error:
        print(f"unweft: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
