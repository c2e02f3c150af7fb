"""The evaluator: its examples, its scores, and the files that it removes or keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from emulation.analysis import evaluator
from emulation.scenario.loading import load
from emulation.scenario.schema import Scenario
from peers.config import DeviceConfig
from peers.models.loader import LoadedModel, load_model
from peers.tasks import encode, evaluate, tasks

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
    trained, others = evaluator._example_sets(scenario, loaded)
    task = tasks.get("facts")(scenario.data, scenario.seed)
    found = {**others.evaluate(loaded.model), **trained.evaluate(loaded.model)}
    for shard in scenario.all_devices:
        for kind, examples in (("accuracy", task.train_examples), ("other_wording", task.other_wording)):
            score = evaluate(loaded.model, encode(examples(shard), loaded.tokenizer, 128))
            assert found[kind][shard] == pytest.approx(score.accuracy)
            if kind == "accuracy":
                assert found["loss"][shard] == pytest.approx(score.loss, rel=1e-4)


def test_snapshots_of_events_and_of_the_newest_round_take_turns(run: Path) -> None:
    queue = evaluator.SnapshotQueue(run)
    assert len(queue.find_new()) == 6 and queue.find_new() == []
    order = []
    while (path := queue.pop()) is not None:
        order.append(path.name.removesuffix(".safetensors"))
    turns = ["00005-before-d1", "00005-round"]
    assert order == [*turns, *turns, "00004-round", "00004-round"]


def test_snapshots_with_equal_contents_are_evaluated_once(
    run: Path, scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = list[int]()

    def counted(examples: evaluator.ExampleSet, model: Any) -> dict[str, object]:
        scored.append(len(examples.encoded))
        return evaluate_set(examples, model)

    evaluate_set = evaluator.ExampleSet.evaluate
    monkeypatch.setattr(evaluator.ExampleSet, "evaluate", counted)
    evaluator.main(run, scenario)
    trained = 3 * 8  # persons with four facts on three devices
    assert scored.count(trained) == 2  # two contents
    assert len(scored) == 4  # and the other examples after the event on two devices
    cost = json.loads((run / "evaluator.json").read_text())
    assert (cost["snapshots"], cost["reused"]) == (6, 4) and cost["cpu_s"] > 0


def test_a_digest_depends_on_the_content_and_not_on_the_file(tmp_path: Path) -> None:
    def digest(name: str, value: float, key: str = "d0@0/early", slots: str = "{}") -> str:
        save_file({key: torch.full((2,), value)}, tmp_path / name, {"device": name})
        return evaluator._digest(tmp_path / name, slots)

    assert digest("a", 1.0) == digest("b", 1.0)
    assert (
        len({digest("a", 1.0), digest("b", 2.0), digest("c", 1.0, "d1@0/early"), digest("d", 1.0, slots="x")})
        == 4
    )
