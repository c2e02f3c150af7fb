"""`unweft experiment privacy`: scenarios, data, attacks on what a neighbour has, output."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from coordinator_free.identifiers import BlockKey
from emulation.experiments import catalogue, privacy
from emulation.experiments.attacks import assign
from emulation.experiments.grid import Cell
from emulation.experiments.metrics import cell_key
from emulation.experiments.neighbour_attacks import Reader, sketch_attack, write_block_alone
from emulation.experiments.privacy import ARMS, DIGITS, FACTS, SCALES, SETTINGS, PrivacyCell, RunAndAttack
from emulation.experiments.request import Request
from peers.errors import InputError
from peers.learning import privacy_account
from peers.storage.snapshots import read_snapshot, write_snapshot
from peers.tasks import make_task

SMOKE = SCALES["smoke"]
RUNS = 6


@pytest.fixture(autouse=True)
def package_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy_account, "missing_package", lambda: None)


def cell(setting: str = DIGITS, arm: str = "none", number: int = 0) -> PrivacyCell:
    return PrivacyCell({s.name: s for s in SETTINGS}[setting], ARMS[arm], number, SMOKE)


@pytest.mark.parametrize("setting", [DIGITS, FACTS])
def test_arms_differ_in_privacy_alone(setting: str) -> None:
    scenarios = {arm: cell(setting, arm).scenario() for arm in ARMS}
    assert {arm: s.privacy.epsilon for arm, s in scenarios.items()} == {
        **{"none": 0.0, "epsilon-8": 8.0, "epsilon-2": 2.0}
    }
    off = scenarios["none"].privacy
    assert all(
        s.model_copy(update={"privacy": off, "name": ""}) == scenarios["none"].model_copy(update={"name": ""})
        for s in scenarios.values()
    )
    assert [e.kind for e in scenarios["none"].event] == ["leave"]


def test_the_leaver_gets_its_half_of_the_pool_and_survivors_the_same_images_in_all_runs(
    tmp_path: Path,
) -> None:
    pool = cell().pooled()
    had = assign(RUNS, len(pool), seed=0)
    found = {}
    for number in (0, 1):
        folder = tmp_path / str(number)
        cell().write_data(had[number], folder)
        data = {"kind": "listed-images", "path": str(folder)}
        config = cell().scenario().device_config()
        task = make_task(config.model_copy(update={"data": config.data.model_copy(update=data)}))
        found[number] = {device: list(task.train_examples(device)) for device in ("d0", "d1", "d2")}
    assert len(found[0]["d0"]) == 20 and len(pool) == 40
    assert found[0]["d2"] == [e for e, mine in zip(pool, had[0], strict=True) if mine]
    assert found[0]["d2"] != found[1]["d2"]
    assert (found[0]["d0"], found[0]["d1"]) == (found[1]["d0"], found[1]["d1"])
    assert not {*found[0]["d0"], *found[0]["d1"]} & {*pool}


def made(one: Cell, folder: Path, console: Console) -> dict[str, Any]:
    """Blocks that remember without privacy, until their deletion."""
    assert isinstance(one, PrivacyCell)
    had = assign(RUNS, len(one.pooled()), seed=0)[one.seed]
    draw = np.random.default_rng(one.seed)
    traces = {f"{m}/{model}": 3.0 * (m == "before" and one.arm.name == "none") for m, model in privacy.MODELS}
    losses = {of: list(np.exp(draw.normal(size=len(had)) - trace * had)) for of, trace in traces.items()}
    figures = dict.fromkeys(privacy.FIGURES, 0.25)
    sketch = {"in the batch": 0.75, "in the data": None} if one.arm.name == "none" else None
    epsilon = one.scenario().privacy.epsilon or None
    return {**cell_key(one), "prefix_sha256": None, **figures, "test": None, "epsilon": epsilon} | {
        "losses": losses,
        "sketch": sketch,
    }


def test_the_tables_show_the_attack_before_and_after_the_deletion(tmp_path: Path) -> None:
    console = Console(record=True, width=160)
    arms = privacy.choose_arms("none,epsilon-2")
    request = Request(catalogue.SCALES["smoke"], arms, tuple(range(RUNS)), tmp_path)
    privacy.run(request, console, made)
    summary = json.loads((tmp_path / "results.json").read_text())["summary"]
    by = {(e["setting"], e["arm"]): e["attacks"] for e in summary}
    assert len(by) == 4
    for setting in (DIGITS, FACTS):
        assert by[setting, "none"]["before/block alone"]["auc"] > 0.9
        assert abs(by[setting, "none"]["deleted/mean"]["auc"] - 0.5) < 0.25
        assert abs(by[setting, "epsilon-2"]["before/block alone"]["auc"] - 0.5) < 0.25
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert len(rows) == 4 * RUNS
    assert {r["epsilon"] for r in rows} == {"", "2.0"}
    shown = console.export_text()
    assert "membership from one sketch of gradients, AUC 0.750 in the batch, AUC – in the data" in shown


def test_one_run_is_measured_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts devices: no other test joins the data, the run, its snapshots and the attacks."""
    one = replace(cell(FACTS), scale=replace(SMOKE, persons=1))
    had: Mapping[str, NDArray[np.bool_]] = {FACTS: assign(6, len(one.pooled()), seed=0)}
    monkeypatch.setattr("emulation.experiments.neighbour_attacks.DIAGNOSED", 2)
    found = RunAndAttack(had)(one, tmp_path, Console())
    assert found["epsilon"] is None and found["test"] is None and found["mb"] > 0
    assert {of: len(losses) for of, losses in found["losses"].items()} == {
        f"{moment}/{model}": 8 for moment, model in privacy.MODELS
    }
    assert 0 <= found["sketch"]["in the batch"] <= 1
    assert not list(tmp_path.rglob("*.safetensors"))  # they hold the block that was forgotten


def snapshot(folder: Path) -> Path:
    """Random blocks of two devices."""
    one = cell(FACTS)
    reader_config = one.scenario().device_config()
    from peers.lora.bases import Recipe
    from peers.models.loader import load_model

    layout = Recipe.make(load_model(reader_config.model), reader_config).layout
    draw = torch.Generator().manual_seed(0)
    tensors = {
        f"{BlockKey(device, 0)}/{g}": 0.02 * torch.randn(layout.rows(g), layout.rank(g), generator=draw)
        for device in ("d0", "d2")
        for g in layout.groups
    }
    path = folder / "model.safetensors"
    write_snapshot(path, tensors, {"d0@0": 0, "d2@0": 2}, {"device": "d0", "round": "0", "tag": "end"})
    return path


def test_the_block_of_one_device_is_all_that_is_left_of_a_snapshot(tmp_path: Path) -> None:
    whole, alone = snapshot(tmp_path), tmp_path / "alone.safetensors"
    write_block_alone(whole, "d2", alone)
    assert [str(key) for key in read_snapshot(alone).blocks()] == ["d2@0"]
    reader = Reader(cell(FACTS).scenario(), cell(FACTS).pooled()[:4])
    assert not np.allclose(reader.read(whole)[0], reader.read(alone)[0])


def test_a_sketch_tells_which_examples_are_in_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emulation.experiments.neighbour_attacks.DIAGNOSED", 3)
    facts = cell(FACTS).pooled()
    found = sketch_attack(cell(FACTS).scenario(), snapshot(tmp_path), facts[:5], facts[5:13])
    assert (found["in the batch"] or 0) > 0.9


def test_bad_options_are_refused_before_anything_runs(tmp_path: Path) -> None:
    assert len(privacy.choose_arms("")) == len(SETTINGS) * len(ARMS)
    assert privacy.choose_arms("epsilon-8") == ("digits/epsilon-8", "facts/epsilon-8")
    assert privacy.choose_arms("facts,none") == ("facts/none",)
    with pytest.raises(InputError, match="allowed: digits, facts, none, epsilon-8, epsilon-2"):
        privacy.choose_arms("epsilon-3")
    request = Request(catalogue.SCALES["medium"], ("facts/none",), tuple(range(6)), tmp_path)
    with pytest.raises(InputError, match="'medium' is no scale of privacy; allowed: full, small, smoke"):
        privacy.check(request)
    with pytest.raises(InputError, match="--publish: privacy has no seeds"):
        privacy.check(replace(request, publish=tmp_path))
