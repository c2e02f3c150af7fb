"""The evaluator: its examples, its scores, and the files that it removes or keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from emulation.analysis import evaluator
from emulation.scenario.loading import load
from emulation.scenario.schema import Scenario
from peers.config import DeviceConfig
from peers.models.loader import LoadedModel, load_model
from peers.tasks import evaluate, tasks

SCENARIO = """
[devices]
count = 2
[data]
persons = 2
[round]
count = 20
[eval]
every = 1
[[event]]
round = 3
kind = "join"
device = "d4"
"""


class SnapshotModel:
    """The base model, for every snapshot."""

    def __init__(self, loaded: LoadedModel, config: DeviceConfig) -> None:
        self.model = loaded.model

    def load(self, path: Path) -> dict[str, str]:
        number, tag = path.stem.split("-", 1)
        return {"device": path.parts[-3], "round": number, "tag": tag.replace("-", ":")}


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    (tmp_path / "s.toml").write_text(SCENARIO)
    return load(tmp_path / "s.toml")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(evaluator, "SnapshotModel", SnapshotModel)
    folder = tmp_path / "run"
    for number, device in enumerate(("d0", "d1")):
        snapshots = folder / "devices" / device / "snapshots"
        snapshots.mkdir(parents=True)
        for name in ("00004-round", "00005-before-d1", "00005-round"):
            save_file({"d0@0/early": torch.full((2, 2), 1.0 + number)}, snapshots / f"{name}.safetensors")
    (folder / "devices" / "d0" / "snapshots" / "00006-round.safetensors.tmp").write_bytes(b"half")
    (folder / evaluator.DONE_MARKER).touch()
    return folder


def test_all_snapshots_are_evaluated_and_removed(run: Path, scenario: Scenario) -> None:
    evaluator.main(run, scenario)
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    evaluated = {(line["device"], line["round"], line["tag"]) for line in lines if "device" in line}
    tags = [(4, "round"), (5, "before:d1"), (5, "round")]
    assert evaluated == {(device, *tag) for device in ("d0", "d1") for tag in tags}
    assert [path.name for path in run.rglob("snapshots/*")] == ["00006-round.safetensors.tmp"]
    errors = {line["round"]: line["consensus_error"] for line in lines if "consensus_error" in line}
    assert errors == pytest.approx({4: 0.5 / 1.5, 5: 0.5 / 1.5})


def test_each_device_is_evaluated_on_the_data_of_each_device(run: Path, scenario: Scenario) -> None:
    evaluator.main(run, scenario)
    for text in (run / "evaluations.jsonl").read_text().splitlines():
        line = json.loads(text)
        if "consensus_error" in line:
            continue
        assert set(line["accuracy"]) == set(line["loss"]) == {"d0", "d1", "d4"}
        ordinary = line["tag"] == "round"
        assert ("control" in line, "other_wording" in line) == (not ordinary, not ordinary)


def test_scores_equal_those_of_the_task(scenario: Scenario) -> None:
    loaded = load_model(scenario.model)
    trained, everything = evaluator._example_sets(scenario, loaded)
    task = tasks.get("facts")(scenario.data, scenario.seed)
    found = everything.evaluate(loaded.model)
    assert trained.evaluate(loaded.model)["accuracy"] == found["accuracy"]
    for shard in scenario.all_devices:
        for kind, examples in (("accuracy", task.train_examples), ("other_wording", task.other_wording)):
            score = evaluate(loaded.model, loaded.encode(examples(shard), 128))
            assert found[kind][shard] == pytest.approx(score.accuracy)
            if kind == "accuracy":
                assert found["loss"][shard] == pytest.approx(score.loss, rel=1e-4)
