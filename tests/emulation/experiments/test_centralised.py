"""A run beside centralised training: what is scored, from a folder that looks like a run's."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from emulation.experiments.centralised import COLUMNS, Scores, compare, summarise
from emulation.scenario.loading import dump
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from peers.models.loader import load_model
from peers.tasks import evaluate, make_task
from tests.support.small_images import images_learner


def test_both_trainings_are_scored_on_the_same_examples(tmp_path: Path) -> None:
    learner = images_learner(tmp_path / "base")
    scenario = Scenario.model_validate(
        {
            "devices": {"count": 2},
            "model": {"name": str(tmp_path / "base")},
            "data": {"kind": "images", "images": 16, "batch": 8, "partition": "by-label"},
            "adapter": {"rank": 2, "max_devices": 4},
            "round": {"count": 2, "local_steps": 2},
            "train": {"lr": 1e-2},
        }
    )
    run = tmp_path / "run"
    for device in ("d0", "d1"):
        (run / "devices" / device).mkdir(parents=True)
    (run / "scenario.toml").write_text(dump(scenario))
    with pytest.raises(InputError, match="has no adapters; allowed: the folder of a run that has ended"):
        compare(run, Console(quiet=True))
    vera = scenario.model_copy(update={"adapter": scenario.adapter.model_copy(update={"kind": "vera"})})
    (run / "scenario.toml").write_text(dump(vera))
    with pytest.raises(InputError, match=r"adapter\.kind: 'vera' trains one number a row"):
        compare(run, Console(quiet=True))
    (run / "scenario.toml").write_text(dump(scenario))
    learner.export(run / "adapters" / "d0")
    console = Console(width=160)
    with console.capture() as shown:
        found = compare(run, console)
    assert all(set(scores) == set(COLUMNS) for scores in found.values()) and "centralised" in shown.get()
    examples = make_task(scenario.device_config()).train_examples("d0")
    batch = load_model(scenario.model).encode(examples, 0)
    assert found["decentralised"]["devices' data"] == pytest.approx(evaluate(learner.model, batch).accuracy)
    assert found["centralised"]["AUC"] is not None


def test_runs_are_summarised_as_paired_differences() -> None:
    def scores(control: float) -> Scores:
        return {**dict.fromkeys(COLUMNS), "control": control}

    pairs = ((0.70, 0.72), (0.80, 0.84), (0.75, 0.81))
    found = [{"decentralised": scores(a), "centralised": scores(b)} for a, b in pairs]
    console = Console(width=160)
    with console.capture() as shown:
        summarise(found, console)
    row = next(line for line in shown.get().splitlines() if "difference" in line)
    assert "-0.040 [-0.090, 0.010]" in row  # sd 0.02, t(2) 4.303
