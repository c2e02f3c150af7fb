"""How an interrupted run goes on: who starts, in which round, with which events; which files are removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from emulation.analysis import records
from emulation.launch import resume
from emulation.launch.device_specs import DeviceSpecs
from emulation.launch.run_state import DeviceStatus, RunState
from emulation.scenario.loading import read, read_toml
from emulation.testbed import epoch
from peers.errors import InputError
from peers.runtime import partition
from peers.storage import checkpoint
from peers.storage.record_files import open_records
from peers.storage.snapshots import write_snapshot
from tests.support import synthetic_run
from tests.support.command_line import unweft
from transport.links.endpoints import reachable_from
from transport.security.keys import verify

LEAVE = {"round": 4, "kind": "leave", "device": "d2", "t_s": synthetic_run.LEFT_S}
JOIN = {"round": 7, "kind": "join", "device": "d3", "t_s": synthetic_run.JOINED_S}


def lines(path: Path, *found: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in found))


def saved(run: Path, device: str, round_: int, *blocks: str) -> Path:
    path = checkpoint.path_of(run, device)
    slots = {block: int(block[1]) for block in blocks}
    tensors = {f"{block}/early": torch.zeros(2) for block in blocks}
    write_snapshot(path, tensors, slots, {"round": str(round_), "fingerprint": "{}"})
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The synthetic run, killed after round 6: d2 has left in round 4, d3 has not joined."""
    folder = synthetic_run.write(tmp_path / "run")
    (folder / "run.json").unlink()
    lines(folder / records.INJECTED, LEAVE)
    for device in ("d0", "d1", "d2"):
        own = folder / "devices" / device
        closed = records.read_lines(own / "metrics.jsonl")
        lines(own / "metrics.jsonl", *[line for line in closed if line["round"] <= 6])
        told = records.read_lines(own / "events.jsonl")
        lines(own / "events.jsonl", *[event for event in told if event["t_s"] <= 7.0])
    for path in (folder / "devices" / "d3").iterdir():
        path.unlink()
    (folder / "devices" / "d3").rmdir()
    for device in ("d0", "d1"):
        saved(folder, device, 5, "d0@0", "d1@0")
    return folder


# -- the plan ------------------------------------------------------------------------------------------
def test_the_run_goes_on_after_the_last_checkpoint(run: Path) -> None:
    saved(run, "d1", 3, "d1@0")  # d1 had not written its last one
    found = resume.plan(run)
    assert (found.devices, found.first_round, found.lives["d0"]) == (("d0", "d1"), 6, 1)
    assert [e.kind for e in found.events] == ["join"] and found.done == (LEAVE,)
    assert found.elapsed_s == 7.0 and found.correct_until == 4 + 1 + 3
    assert [(str(i.key), i.end) for i in found.ended] == [("d0@0", ""), ("d1@0", ""), ("d2@0", "leave")]


def test_an_event_after_the_checkpoint_is_done_and_its_correction_begins_anew(run: Path) -> None:
    for device in ("d0", "d1"):
        saved(run, device, 2, "d0@0", "d1@0", "d2@0")
    found = resume.plan(run)
    assert found.first_round == 3 and [e.kind for e in found.events] == ["join"]
    assert found.correct_until == 3 + 3


def test_a_join_without_a_process_starts_with_the_others(run: Path) -> None:
    lines(run / records.INJECTED, LEAVE, JOIN)
    found = resume.plan(run)
    assert found.devices == ("d0", "d1", "d3") and found.events == ()


def test_a_partition_that_was_not_healed_goes_on(run: Path) -> None:
    data = read_toml(run / "scenario.toml")
    data["event"].append({"round": 5, "kind": "partition", "groups": [["d0"]]})
    (run / "scenario.toml").write_text(tomli_w.dumps(data))
    lines(run / records.INJECTED, LEAVE, {"round": 5, "kind": "partition", "device": "d0", "t_s": 6.0})
    found = resume.plan(run)
    assert found.partition == (("d0",),) and [e.kind for e in found.events] == ["join"]
    resume.prepare(run, read(run / "scenario.toml"), found)
    assert partition.read(run / "devices" / "d1") == {"d0"}


def test_at_least_the_last_round_is_left(run: Path) -> None:
    saved(run, "d0", 9, "d0@0")
    assert resume.plan(run).first_round == 9


# -- bad input -----------------------------------------------------------------------------------------
def test_a_finished_run_does_not_go_on(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run")
    with pytest.raises(InputError, match=r"--resume: the run in .* is finished; .* unweft report"):
        resume.plan(folder)


def test_a_run_without_a_checkpoint_does_not_go_on(run: Path) -> None:
    for path in (run / checkpoint.FOLDER).iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"holds no checkpoint; .*checkpoint\.every above 0"):
        resume.plan(run)


def test_a_damaged_checkpoint_is_named(run: Path) -> None:
    checkpoint.path_of(run, "d1").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"d1\.safetensors: is no checkpoint"):
        resume.plan(run)


def test_a_run_of_containers_does_not_go_on(run: Path) -> None:
    (run / epoch.FILE).write_text("{}")
    with pytest.raises(InputError, match="were containers"):
        resume.plan(run)


def test_a_process_of_the_interrupted_run_is_waited_for(run: Path) -> None:
    events = run / "devices" / "d0" / "events.jsonl"
    with open_records(events), pytest.raises(InputError, match=r"a process of the run still writes .*events"):
        resume.wait_for_end(run, wait_s=0.0)
    resume.wait_for_end(run, wait_s=0.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--resume", "nowhere"), "nowhere holds no run (no scenario.toml); allowed:"),
        (("--resume", "nowhere", "--seed", "3"), "so --seed does not fit; allowed: --on, --watch, --track"),
        (("demo", "--resume", "nowhere"), "so SCENARIO does not fit"),
        (("--resume", "nowhere", "--on", "compose"), "does not work with --on compose; allowed: --on local"),
        ((), "SCENARIO: missing; allowed: a file, a name of `unweft list scenarios`, or --resume DIR"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unweft(monkeypatch, "run", *options) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and says in said[0]


# -- the files -----------------------------------------------------------------------------------------
def prepared(run: Path) -> None:
    resume.prepare(run, read(run / "scenario.toml"), resume.plan(run))


def test_no_file_keeps_the_block_of_a_device_that_left(run: Path) -> None:
    """The launcher sent the signal, and was killed before any device knew."""
    lines(run / "devices" / "d0" / "events.jsonl", {"t_s": 0.0, "round": -1, "event": "started"})
    lines(run / "devices" / "d1" / "events.jsonl", {"t_s": 0.0, "round": -1, "event": "started"})
    path = saved(run, "d1", 5, "d0@0", "d1@0", "d2@0")
    prepared(run)
    with path.open("rb") as file:
        assert b"d2@0" not in file.read()


def test_a_file_that_cannot_be_corrected_stops_the_run(run: Path) -> None:
    broken = run / "devices" / "d0" / "snapshots" / "00003-round.safetensors"
    broken.mkdir(parents=True)  # a folder: it is neither read nor removed as a file
    with pytest.raises(InputError, match="holds a forgotten block and cannot be corrected"):
        prepared(run)


def test_what_was_measured_of_lost_rounds_is_removed(run: Path) -> None:
    (run / "run.json").write_text("{}")
    (run / "checkpoint" / "d0.safetensors.tmp").touch()
    found = run / "devices" / "d0" / "snapshots"
    for name in ("00005-round", "00006-round", "00006-before-d2"):
        write_snapshot(found / f"{name}.safetensors", {"d0@0/early": torch.zeros(2)}, {"d0@0": 0}, {})
    prepared(run)
    assert sorted(path.stem for path in found.iterdir()) == ["00005-round", "00006-before-d2"]
    kept = records.read_lines(run / "evaluations.jsonl")
    assert {line["tag"] for line in kept} == {"round", "before:d2", "deleted:d2"}
    assert max(line["round"] for line in kept) == 5
    assert not list(run.rglob("*.tmp")) and not (run / "run.json").exists()


def test_the_records_say_that_the_run_went_on(run: Path) -> None:
    prepared(run)
    line = records.read_lines(run / records.INJECTED)[-1]
    assert line == {"round": 6, "kind": "resumed", "device": "d0, d1", "t_s": 7.0}
    again = resume.plan(run)
    assert again.resumed[0] == line and len(again.resumed) == 2 and again.done == (LEAVE,)


# -- what the devices get ------------------------------------------------------------------------------
def state_of(run: Path) -> RunState:
    return RunState(scenario=read(run / "scenario.toml"), out=run, continues=resume.plan(run))


def test_devices_get_the_ended_incarnations_signed_anew(run: Path) -> None:
    specs = DeviceSpecs.choose(state_of(run), lambda count: [f"tcp://127.0.0.1:{n}" for n in range(count)])
    assert list(specs.addresses) == ["d0#1", "d1#1", "d3"]
    spec = specs.spec("d0", 1, 2, ["d1#1"])
    assert spec.continues is not None and spec.config.checkpoint.resume == str(run)
    assert [(str(r.key), r.status.name) for r in spec.continues.ended] == [
        ("d0@0", "WITHDRAWN"),
        ("d1@0", "WITHDRAWN"),
        ("d2@0", "LEFT"),
    ]
    for record in spec.continues.ended:
        assert verify(record.public, record.signed_data(), record.signature, specs.run)
        assert type(record).from_dict(record.to_dict()) == record  # gossip may carry it
    joiner = specs.spec("d3", 0, 0, ["d0#1"])
    assert joiner.continues is None and joiner.config.checkpoint.resume is None


@pytest.mark.parametrize("kind", ["tcp://127.0.0.1:700", "ipc:///run/x/"])
def test_the_address_of_an_ended_incarnation_is_refused_by_no_link(run: Path, kind: str) -> None:
    specs = DeviceSpecs.choose(state_of(run), lambda count: [f"{kind}{n}" for n in range(count)])
    spec = specs.spec("d0", 1, 2, ["d1#1"])
    assert spec.continues is not None
    addresses = {record.address for record in spec.continues.ended}
    assert all(reachable_from(spec.listen, address) for address in addresses)
    assert addresses.isdisjoint(specs.addresses.values())


def test_rounds_from_before_the_interruption_make_no_event_due(run: Path) -> None:
    state = state_of(run)
    state.pending = list(state.start.events)
    state.see_devices({"d0": DeviceStatus(running=True), "d1": DeviceStatus(running=True)})
    assert state.last_round == {} and state.next_due() is None
    state.events.append({"round": 7, "kind": "leave", "device": "d0", "t_s": 7.5})
    lines(
        run / "devices" / "d0" / "events.jsonl",
        {"t_s": 8.0, "round": 7, "event": "finished"},
    )
    state.withdraw_ineffective()
    assert [e["device"] for e in state.events] == ["d2"]  # the leave from before stays
