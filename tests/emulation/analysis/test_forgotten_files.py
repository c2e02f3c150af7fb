"""When a run is over, no file of it holds a block whose owner left, whoever wrote the file and when."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership.signed_records import Status
from emulation.analysis import forgotten_files, invariants, records, summary, tombstones
from emulation.launch import run_loop
from emulation.launch.errors import RunFailed
from emulation.scenario import preflight
from peers.storage import checkpoint, leave_wishes
from peers.storage.adapter_folder import WEIGHTS, adapter_sha256
from tests.support import synthetic_run
from tests.support.command_line import QUICK, unweft
from tests.support.learners import OTHERS, OWN, joined
from tests.support.membership_records import make

D2 = BlockKey("d2", 0)
Put = Callable[[Path], Path]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run of synthetic_run, in which d2 leaves, with an adapter that knows of the leave."""
    folder = synthetic_run.write(tmp_path / "run")
    learner = joined()
    learner.delete_block(D2)
    learner.export(folder / "adapters" / "d0")
    return folder


def forgotten(run: Path) -> dict[str, object]:
    found: dict[str, object] = summary.build(run)["forgotten"]
    return found


def adapter(run: Path) -> Path:
    joined().export(run / "adapters" / "d1")
    return run / "adapters" / "d1"


def unfinished_adapter(run: Path) -> Path:
    return adapter(run).rename(run / "adapters" / ".d1-77")


def unfinished_first_adapter(run: Path) -> Path:
    """A first export into a folder that was there and empty, by a process that was killed."""
    (run / "adapters" / "d3").mkdir()
    return adapter(run).rename(run / "adapters" / "d3" / ".d3-77")


def half_renamed_adapter(run: Path) -> Path:
    path = adapter(run)
    (path / "unweft.json").unlink()
    return path


def contribution(run: Path) -> Path:
    """An adapter whose list does not name the block, but whose folder of contributions has it."""
    joined().export(run / "other")
    (run / "other" / "blocks" / "d2").rename(run / "adapters" / "d0" / "blocks" / "d2")
    return run / "adapters" / "d0"


def snapshot(run: Path) -> Path:
    path = run / "devices" / "d1" / "snapshots" / "00009-end.safetensors"
    joined().snapshot(path, {"device": "d1", "round": "9", "tag": "end", "incarnation": "0"})
    return path


def unfinished_snapshot(run: Path) -> Path:
    path = snapshot(run)
    return path.rename(path.with_name(f"{path.name}.tmp"))


def damaged_snapshot(run: Path) -> Path:
    path = snapshot(run)
    path.write_bytes(path.read_bytes()[:300])
    return path


def kept_snapshot(run: Path) -> Path:
    path = run / records.KEPT_SNAPSHOTS / "d1" / "00001-round.safetensors"
    joined().snapshot(path, {"device": "d1", "round": "1", "tag": "round", "incarnation": "0"})
    return path


def saved_checkpoint(run: Path) -> Path:
    path = checkpoint.path_of(run, "d0")
    learner = joined()
    learner.train(0, 1, rehearse=False)
    learner.checkpoint(path, 0)
    return path


PLACES: list[Put] = [
    adapter,
    unfinished_adapter,
    unfinished_first_adapter,
    half_renamed_adapter,
    contribution,
    snapshot,
    unfinished_snapshot,
    damaged_snapshot,
    kept_snapshot,
    saved_checkpoint,
]


@pytest.mark.parametrize("put", PLACES)
def test_a_forgotten_block_is_found_in_each_kind_of_file_and_deleted_from_it(run: Path, put: Put) -> None:
    name = str(put(run).relative_to(run))
    before = forgotten(run)
    assert (before["tombstones"], before["holding"], before["corrected"]) == (["d2@0"], [name], [])
    assert "a file holds a forgotten block: " + name in map(str, invariants.check(run))
    forgotten_files.correct(run)
    after = forgotten(run)
    assert (after["holding"], after["corrected"]) == ([], [name])
    forgotten_files.correct(run)
    assert forgotten(run)["corrected"] == [name]


def test_the_corrected_adapter_is_the_adapter_after_a_deletion(run: Path) -> None:
    path = adapter(run)
    forgotten_files.correct(run)
    assert adapter_sha256(path) == adapter_sha256(run / "adapters" / "d0")
    assert json.loads((path / "unweft.json").read_text())["blocks"] == [
        {"device": "d0", "incarnation": 0, "slot": 0},
        {"device": "d1", "incarnation": 0, "slot": 1},
    ]
    assert sorted(child.name for child in (run / "adapters").iterdir()) == ["d0", "d1"]
    shown = {device["id"]: device["adapter_sha256"] for device in summary.build(run)["devices"]}
    assert shown["d1"] == adapter_sha256(path)


def test_a_corrected_checkpoint_keeps_the_other_blocks_and_the_moments(run: Path) -> None:
    path = saved_checkpoint(run)
    before = load_file(path)
    forgotten_files.correct(run)
    after = load_file(path)
    assert {name for name in before if name not in after} == {n for n in before if n.startswith("d2@0/")}
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert any(name.startswith("moments/") for name in after)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["slots"]) == {str(OWN): 0, str(OTHERS[0]): 1}


def test_the_moments_of_a_forgotten_block_go_with_it(tmp_path: Path) -> None:
    path = checkpoint.path_of(tmp_path, "d0")
    learner = joined()
    learner.train(0, 1, rehearse=False)
    learner.checkpoint(path, 0)
    checkpoint.forget_blocks(path, {OWN})
    assert {name.partition("/")[0] for name in load_file(path)} == {"d1@0", "d2@0"}


def test_a_file_that_cannot_be_corrected_is_named_and_not_destroyed(run: Path) -> None:
    path = adapter(run)
    (path / "adapter_config.json").unlink()
    forgotten_files.correct(run)
    assert forgotten(run)["holding"] == ["adapters/d1"] and (path / WEIGHTS).exists()


def test_kept_snapshots_are_left_to_the_experiment_that_keeps_them(run: Path) -> None:
    path = kept_snapshot(run)
    forgotten_files.correct(run, keep_snapshots=True)
    assert path.exists()


def test_without_a_leave_nothing_is_touched(run: Path) -> None:
    for device in ("d0", "d1", "d2"):
        path = run / "devices" / device / "events.jsonl"
        kept = [line for line in path.read_text().splitlines() if '"leave"' not in line]
        path.write_text("".join(f"{line}\n" for line in kept))
    snapshot(run), adapter(run)
    forgotten_files.correct(run)
    found = forgotten(run)
    assert (found["tombstones"], found["holding"], found["corrected"]) == ([], [], [])
    assert found["files_checked"] == 3


# -- tombstones and wishes -------------------------------------------------------------------------------


def left(device: str, incarnation: int = 0):
    return replace(make(device, incarnation, lamport=5), status=Status.LEFT)


def test_a_wish_on_disk_is_a_tombstone_and_is_listed_until_another_device_confirms_it(run: Path) -> None:
    leave_wishes.write(run / "devices" / "d3", [left("d3")], confirmed=False)
    found = summary.build(run)
    assert found["forgotten"]["tombstones"] == ["d2@0", "d3@0"]
    assert found["unconfirmed_leaves"] == ["d3@0"]
    with (run / "devices" / "d3" / "events.jsonl").open("a") as file:
        file.write('{"t_s": 1, "round": 1, "event": "tombstone", "peer": "d3", "incarnation": 0}\n')
    assert summary.build(run)["unconfirmed_leaves"] == ["d3@0"]  # its own word is no confirmation
    with (run / "devices" / "d0" / "events.jsonl").open("a") as file:
        file.write('{"t_s": 1, "round": 1, "event": "tombstone", "peer": "d3", "incarnation": 0}\n')
    assert summary.build(run)["unconfirmed_leaves"] == []
    leave_wishes.write(run / "devices" / "d3", [left("d3")], confirmed=True)
    assert [str(b) for b in tombstones.find(records.load(run))] == ["d2@0", "d3@0"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"records": [1, {}], "confirmed": false}', "\xff"])
def test_a_damaged_wish_is_no_wish(tmp_path: Path, text: str) -> None:
    (tmp_path / leave_wishes.FILE).write_bytes(text.encode("latin-1"))
    assert leave_wishes.read(tmp_path) == leave_wishes.LeaveWish()


def test_wishes_survive_the_disk(tmp_path: Path) -> None:
    records_ = (left("d3"), left("d3", 1))
    leave_wishes.write(tmp_path, records_, confirmed=False)
    assert leave_wishes.read(tmp_path) == leave_wishes.LeaveWish(records_, False)
    leave_wishes.deliver(tmp_path, records_[:1])
    leave_wishes.deliver(tmp_path, records_[1:])
    assert leave_wishes.delivered(tmp_path) == records_


def test_a_killed_run_is_corrected_before_another_run_begins_with_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No launcher corrected the files of the killed run. The devices of the new run read them."""
    path = saved_checkpoint(run)
    assert forgotten_files.check(run, [D2]).holding == [path]
    held: list[list[Path]] = []

    def start(*_: object) -> int:
        held.append(forgotten_files.check(run, [D2]).holding)
        raise RunFailed("this test starts no device")

    monkeypatch.setattr(run_loop, "run", start)
    monkeypatch.setattr(preflight, "check_against_model", lambda scenario: None)  # the saved model is another
    options = "--set", f"checkpoint.resume={run}", "--out", tmp_path / "next"
    assert unweft(monkeypatch, "run", QUICK, *options) == 1
    assert held == [[]]


@pytest.mark.parametrize(
    "name", ["d2/leave.json.tmp", "d1/snapshots/00001-round.safetensors.tmp", "d1/.x.json.tmp"]
)
def test_files_that_a_killed_device_had_not_finished_are_removed(run: Path, name: str) -> None:
    path = run / "devices" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    forgotten_files.correct(run)
    assert not path.exists()
