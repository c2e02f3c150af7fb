"""The evaluator: its examples, its scores, and the files that it removes or keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from emulation.analysis import evaluator
from emulation.experiments.statistics import auc
from emulation.scenario.loading import from_table, load
from emulation.scenario.metric_checks import check_metrics
from emulation.scenario.schema import EvalConfig, Scenario
from peers.config import DeviceConfig
from peers.errors import InputError
from peers.models.loader import LoadedModel, load_model
from peers.storage.snapshots import Snapshot, read_snapshot, write_snapshot
from peers.tasks import evaluate, make_task, tasks
from tests.support.small_images import save_small_classifier

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

    def place(self, snapshot: Snapshot) -> None:
        self.placed.append(snapshot.meta)

    placed: ClassVar[list[dict[str, str]]] = []


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
            round_, tag = name.split("-", 1)
            meta = {"device": device, "round": round_, "tag": tag.replace("-", ":")}
            tensors = {"d0@0/early": torch.full((2, 2), 1.0 + number)}
            write_snapshot(snapshots / f"{name}.safetensors", tensors, {"d0@0": 0}, meta)
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


def test_snapshots_of_the_same_blocks_are_evaluated_once(run: Path, scenario: Scenario) -> None:
    SnapshotModel.placed.clear()
    evaluator.main(run, scenario)
    # Rounds 4 and 5 of a device have the blocks of its "before", which is measured on more examples. The
    # round of d1 takes its turn before that.
    assert len(SnapshotModel.placed) == 3
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    first, second = (x for x in lines if x.get("device") == "d1" and x["tag"] == "round")
    assert first["accuracy"] == second["accuracy"]


def test_one_device_is_evaluated_in_the_run_and_all_at_the_end(run: Path, scenario: Scenario) -> None:
    last = {"device": "d1", "round": "6", "tag": "end"}
    end = run / "devices" / "d1" / "snapshots" / "00006-end.safetensors"
    write_snapshot(end, {"d0@0/early": torch.zeros(2, 2)}, {"d0@0": 0}, last)
    one = scenario.eval.model_copy(update={"devices": "one"})
    evaluator.main(run, scenario.model_copy(update={"eval": one}))
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    rounds = [(4, "round"), (5, "before:d1"), (5, "round")]
    evaluated = {(line["device"], line["round"], line["tag"]) for line in lines if "device" in line}
    assert evaluated == {*(("d0", *tag) for tag in rounds), ("d1", 6, "end")}
    assert {line["round"] for line in lines if "consensus_error" in line} == {4, 5}  # of both devices
    assert not list(run.rglob("snapshots/*.safetensors"))


def test_the_device_that_is_evaluated_alone_has_no_event(tmp_path: Path) -> None:
    leave = '[[event]]\nround = 3\nkind = "leave"\ndevice = "{}"\n'
    (tmp_path / "s.toml").write_text(SCENARIO + leave.format("d0"))
    scenario = load(tmp_path / "s.toml", ["eval.devices=one"])
    assert [d for d in scenario.all_devices if scenario.evaluates(d, "round")] == ["d1"]
    assert all(scenario.evaluates(d, "end") for d in scenario.all_devices)
    stall = leave.replace("leave", "stall").format("d1") + "duration_s = 1.0\n"
    (tmp_path / "s.toml").write_text(SCENARIO + leave.format("d0") + stall)
    with pytest.raises(
        InputError, match=r"eval\.devices: 'one' needs an initial device that no event removes"
    ):
        load(tmp_path / "s.toml", ["eval.devices=one"])


def test_no_more_than_the_asked_number_of_examples_is_evaluated(scenario: Scenario) -> None:
    capped = scenario.model_copy(update={"eval": scenario.eval.model_copy(update={"examples": 3})})
    every, some = (evaluator.choose_examples(s) for s in (scenario, capped))
    assert [len(x) for x in every.trained.values()] == [8, 8, 8]
    assert [len(x) for x in some.trained.values()] == [3, 3, 3] and len(some.control) == 3
    assert set(some.trained["d0"]) < set(every.trained["d0"])
    assert some == evaluator.choose_examples(capped)


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
    chosen = evaluator.choose_examples(scenario)
    sets = evaluator._example_sets(chosen, loaded, scenario.data.max_length)
    task = tasks.get("facts")(scenario.data, scenario.seed)
    trained, others = (some.record(some.score(loaded.model)) for some in sets)
    found = trained | others
    assert list(trained) == ["accuracy", "loss"] and list(others) == ["other_wording", "control"]
    for shard in scenario.all_devices:
        for kind, examples in (("accuracy", task.train_examples), ("other_wording", task.other_wording)):
            score = evaluate(loaded.model, loaded.encode(examples(shard), 128))
            assert found[kind][shard] == pytest.approx(score.accuracy)
            if kind == "accuracy":
                assert found["loss"][shard] == pytest.approx(score.loss, rel=1e-4)


def test_snapshots_of_events_and_of_the_newest_round_take_turns(run: Path, scenario: Scenario) -> None:
    queue = evaluator.SnapshotQueue(run, scenario)
    assert len(queue.find_new()) == 6 and queue.find_new() == []
    order = []
    while (path := queue.pop()) is not None:
        order.append(path.name.removesuffix(".safetensors"))
    turns = ["00005-before-d1", "00005-round"]
    assert order == [*turns, *turns, "00004-round", "00004-round"]


def test_the_cost_of_the_evaluator_is_written_at_its_end(run: Path, scenario: Scenario) -> None:
    evaluator.main(run, scenario)
    cost = json.loads((run / "evaluator.json").read_text())
    assert cost["snapshots"] == 6 and 0 <= cost["reused"] < 6 and cost["cpu_s"] > 0


def test_images_are_attacked_by_their_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_small_classifier(tmp_path / "base")
    data = {"kind": "images", "images": 12, "partition": "by-label"}
    table = {"devices": {"count": 2}, "model": {"name": str(tmp_path / "base")}, "data": data}
    scenario = from_table({**table, "eval": {"metrics": ["mia_loss"]}, "adapter": {"rank": 2}})
    monkeypatch.setattr(evaluator, "SnapshotModel", SnapshotModel)
    found = evaluator.Evaluator(scenario)
    model = load_model(scenario.model).model
    members = found._trained.losses(found._trained.score(model))[evaluator.TRAINED, "d1"]
    control = found._others.losses(found._others.score(model))
    path = tmp_path / "3-deleted-d1.safetensors"
    write_snapshot(path, {}, {}, {"device": "d0", "round": "3", "tag": "deleted-d1"})
    line = found.score(read_snapshot(path))
    assert set(line["metrics"]) == {"mia_loss"} and set(line["metrics"]["mia_loss"]) == {"d0", "d1"}
    assert line["metrics"]["mia_loss"]["d1"] == pytest.approx(auc(members, control[evaluator.CONTROL, ""]))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"metrics": ["mia_loss", "rouge"]},
            r"eval\.metrics: 'rouge' needs texts.*or eval\.metrics = \['mia_loss'\]",
        ),
        ({"metrics": ["mia_loss"], "samples": 1}, r"eval\.samples: needs texts"),
    ],
)
def test_other_metrics_of_images_are_refused(asked: dict[str, Any], said: str) -> None:
    task = make_task(from_table({"data": {"kind": "images", "images": 4}}).device_config())
    shards, control = [task.train_examples("d0")], task.control_examples()
    check_metrics(EvalConfig.model_validate({"metrics": ["mia_loss"]}), shards, control)
    with pytest.raises(InputError, match=said):
        check_metrics(EvalConfig.model_validate(asked), shards, control)
