"""`unweft experiment forgetting`: scenarios, data, attacks on models, output."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from coordinator_free.identifiers import BlockKey
from emulation.experiments import forgetting, shadow_models
from emulation.experiments.attacks import assign
from emulation.experiments.catalogue import SCALES
from emulation.experiments.forgetting import ARMS, SETTING, ForgettingCell, choose_arms, parse_runs
from emulation.experiments.grid import Cell
from emulation.experiments.metrics import cell_key
from emulation.experiments.request import Request
from emulation.experiments.shadow_models import INT4, MEAN, Attacker
from emulation.scenario.loading import dump, load
from peers.errors import InputError
from peers.learning.learner import Learner
from peers.models.loader import load_model
from peers.tasks import Example, encode, question
from peers.tasks.jsonl import read_examples

SMOKE = SCALES["smoke"]


def cell(arm: str = "leave", number: int = 0, scale: str = "smoke") -> ForgettingCell:
    return ForgettingCell(SETTING, ARMS[arm], number, SCALES[scale])


@pytest.mark.parametrize("arm", ARMS)
def test_every_scenario_is_valid_and_ends_with_a_deletion(arm: str, tmp_path: Path) -> None:
    path = tmp_path / "cell.toml"
    path.write_text(dump(cell(arm, scale="small").scenario()))
    scenario = load(path)
    assert scenario.event[-1].kind == ("crash" if arm == "crash" else "leave")
    assert scenario.round.count - scenario.event[-1].round == SCALES["small"].correct + 1


def test_the_leaver_gets_its_half_and_survivors_the_same_facts_in_all_runs(tmp_path: Path) -> None:
    facts = forgetting.pool(SMOKE)
    had = assign(6, len(facts), seed=0)
    for number in (0, 1):
        forgetting.write_data(cell(number=number), facts, had[number], tmp_path / str(number))
    prompts = {
        (number, device): [e.prompt for e in read_examples(tmp_path / str(number) / f"{device}.jsonl")]
        for number in (0, 1)
        for device in ("d0", "d2")
    }
    assert prompts[0, "d2"] == [f.prompt for f, mine in zip(facts, had[0], strict=True) if mine]
    assert prompts[0, "d2"] != prompts[1, "d2"]
    assert prompts[0, "d0"] == prompts[1, "d0"] and not {*prompts[0, "d0"]} & {f.prompt for f in facts}


def test_an_attacker_scores_each_model_its_mean_and_its_int4_export_and_relearns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_models, "MOST_STEPS", 10)
    scenario = cell().scenario()
    facts = forgetting.pool(replace(SMOKE, persons=1))[:4]
    loaded = load_model(scenario.model)
    data = encode(facts, loaded.tokenizer, scenario.data.max_length)
    learner = Learner(loaded, scenario.device_config(), data, "d0")
    learner.set_own(BlockKey("d0", 0), 0)
    draw = torch.Generator().manual_seed(0)
    for group in learner.groups:
        shape = learner.layout.rows(group), learner.layout.rank(group)
        learner.write(BlockKey("d0", 0), group, 0.05 * torch.randn(shape, generator=draw))
    path = tmp_path / "d0.safetensors"
    learner.snapshot(path, {"device": "d0", "round": "0", "tag": "end"})
    attacker = Attacker(scenario, facts)
    found = attacker.losses({"d0": path}, tmp_path)
    assert found.keys() == {"d0", MEAN, INT4} and len(found["d0"]) == 4
    assert found[MEAN] == pytest.approx(found["d0"])
    assert found[INT4] == pytest.approx(found["d0"], abs=1.0) and found[INT4] != found["d0"]
    relearned = attacker.relearn(path, range(4))
    assert relearned["steps"] in (None, 5, 10) and 0 <= relearned["other"] <= 1


def made(one: Cell, folder: Path, console: Console) -> dict[str, Any]:
    """Models that remember the leaver's facts: all before the deletion, and only d0 right after it."""
    facts = len(forgetting.pool(SMOKE))
    had = assign(8, facts, seed=0)[one.seed]
    draw = np.random.default_rng(one.seed)

    def losses(trace: float) -> list[float]:
        return list(np.exp(draw.normal(size=facts) - trace * had))

    names = ("d0", "d1", MEAN, INT4)
    moments = {
        m: {n: losses(2.0 * (m == "before" or (m == "deleted" and n == "d0"))) for n in names}
        for m in ("before", "deleted", "end")
    }
    relearn = {"had": {"steps": 10 + one.seed, "other": 0.5}, "not": {"steps": 30, "other": 0.1}}
    return {**cell_key(one), "prefix_sha256": None, "losses": moments, "relearn": relearn}


def test_an_experiment_finds_the_device_that_remembers(tmp_path: Path) -> None:
    console = Console(record=True, width=160)
    forgetting.run(Request(SMOKE, ("leave",), tuple(range(8)), tmp_path), console, made)
    rows = json.loads((tmp_path / "results.json").read_text())["summary"]
    by = {(row["moment"], row["model"]): row for row in rows}
    assert by["deleted", "worst device"]["auc"] > 0.8 and by["before", MEAN]["auc"] > 0.8
    assert all(abs(by["deleted", model]["auc"] - 0.5) < 0.25 for model in (MEAN, INT4))
    end = by["end", MEAN]
    assert (end["steps_had"], end["steps_not"], end["other_had"]) == (13.5, 30, 0.5)
    assert end["steps_difference_mean"] == -16.5 and end["other_difference_mean"] == pytest.approx(0.4)
    assert by["deleted", MEAN]["p"] is not None and by["before", MEAN]["p"] is None
    assert len(list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))) == 9
    text = console.export_text()
    assert "worst device" in text and "0.400 [0.400, 0.400]" in text


def test_facts_that_one_run_did_not_relearn_have_no_mean(tmp_path: Path) -> None:
    def some(one: Cell, folder: Path, console: Console) -> dict[str, Any]:
        found = made(one, folder, console)
        return (
            found
            if one.seed
            else {**found, "relearn": {**found["relearn"], "not": {"steps": None, "other": 0}}}
        )

    forgetting.run(Request(SMOKE, ("leave",), tuple(range(8)), tmp_path), Console(record=True), some)
    end = json.loads((tmp_path / "results.json").read_text())["summary"][6]
    assert (end["moment"], end["model"]) == ("end", MEAN)
    assert end["steps_had"] == 13.5 and end["other_had"] == 0.5
    assert [end[key] for key in ("steps_not", "other_not", "steps_difference_mean")] == [None] * 3


def test_images_are_refused_before_anything_runs(tmp_path: Path) -> None:
    images = {"data.kind": "images", "model.name": "small-resnet", "data.images": 20}
    with pytest.raises(InputError, match=r"data\.kind: has no texts; allowed for forgetting"):
        forgetting.check(Request(SMOKE, ("leave",), tuple(range(6)), tmp_path, changes=images))


@pytest.mark.parametrize("example", [Example("a", "b"), question("Who?", "Nobody.")])
def test_the_file_of_a_device_gives_its_examples_back(example: Example, tmp_path: Path) -> None:
    (tmp_path / "d0.jsonl").write_text(json.dumps(forgetting._line(example)) + "\n")
    assert read_examples(tmp_path / "d0.jsonl") == [replace(example, ends=True)]


def test_bad_options_are_refused_before_anything_runs() -> None:
    assert choose_arms("") == ("leave", "crash", "return") and choose_arms("crash") == ("crash",)
    with pytest.raises(InputError, match="allowed: leave, crash, return"):
        choose_arms("stall")
    with pytest.raises(InputError, match="at least 6"):
        parse_runs("5")
