"""The backend `slurm`, with commands of Slurm that only record their arguments: events, ends, errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from emulation.launch import evaluator_process, forkserver, run_loop, slurm
from emulation.launch.errors import RunFailed
from emulation.launch.run_loop import check_devices
from emulation.launch.slurm_script import HEARTBEAT, NOT_SHARED, TaskScript
from emulation.scenario.loading import load
from emulation.testbed import slurm as slurm_commands
from emulation.testbed import slurm_tasks, start_gate
from peers.errors import InputError
from peers.runtime import partition
from tests.support.command_line import QUICK, unweft
from tests.support.fake_slurm import SCENARIO, FakeSlurm, claim_ids, prepared, started

Patch = pytest.MonkeyPatch


@pytest.fixture
def cluster() -> FakeSlurm:
    return FakeSlurm()


# -- events ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "signal"),
    [
        ('kind = "leave"', "TERM"),
        ('kind = "retire"', "INT"),
        ('kind = "crash"', "KILL"),
        ('kind = "stall"\nduration_s = 1.0', "STOP"),
    ],
)
def test_an_event_is_a_signal_to_one_task_once_all_devices_have_closed_its_round(
    tmp_path: Path, cluster: FakeSlurm, event: str, signal: str
) -> None:
    event = f'round = 5\ndevice = "d1"\n{event}'
    early = started(tmp_path / "early", cluster, event, closed=4)
    early.inject()
    assert cluster.asked == [] and len(early.pending()) == 1
    run = started(tmp_path / "run", cluster, event)
    run.inject()
    assert cluster.asked == [f"scancel --batch --signal={signal} {run.backend.lives['d1'][0].task}"]
    assert run.pending() == []


def test_a_stall_ends_after_its_seconds(tmp_path: Path, cluster: FakeSlurm) -> None:
    run = started(tmp_path, cluster, 'round = 5\nkind = "stall"\ndevice = "d1"\nduration_s = 60.0')
    run.inject()
    run.state.epoch_ns -= 61 * 10**9  # 61 s pass
    run.inject()
    assert [asked.split()[2] for asked in cluster.asked] == ["--signal=STOP", "--signal=CONT"]


def test_a_joiner_is_a_task_of_its_own_that_waits_at_its_gate(tmp_path: Path, cluster: FakeSlurm) -> None:
    run = started(tmp_path, cluster, 'round = 5\nkind = "join"\ndevice = "d7"')
    assert run.backend.lives["d7"][0].task == "2_0" and "d7" not in run.running()
    run.inject()
    assert "d7" in run.running() and cluster.asked == []


def test_a_device_that_returns_gets_a_new_task(tmp_path: Path, cluster: FakeSlurm) -> None:
    crash, back = 'round = 3\nkind = "crash"\ndevice = "d1"', 'round = 5\nkind = "return"\ndevice = "d1"'
    run = started(tmp_path, cluster, crash, back)
    run.inject()
    assert run.pending() == ["return"]  # its last life has not ended yet
    run.look()
    assert "d1" not in run.running()  # Slurm does not list the new task yet
    run.look()
    run.inject()
    assert "d1" in run.running() and run.pending() == []
    assert cluster.asked[-1].startswith("sbatch") and "\nd1\nDEVICES" in cluster.scripts[-1]
    assert [life.exit for life in run.backend.lives["d1"]] == [-9, None]
    check_devices(run.state)
    assert [e["kind"] for e in run.state.events] == ["crash", "return"]


def test_a_partition_is_emulated_as_among_processes(tmp_path: Path, cluster: FakeSlurm) -> None:
    run = started(tmp_path, cluster, 'round = 5\nkind = "partition"\ngroups = [["d0"], ["d1", "d2"]]')
    run.inject()
    assert partition.read(run.state.out / "devices" / "d0") == {"d1", "d2"}
    assert cluster.asked == [f"scancel --batch --signal=USR1 1_{index}" for index in range(3)]


def test_signals_reach_the_processes_of_an_image(tmp_path: Path, cluster: FakeSlurm) -> None:
    run = started(tmp_path, cluster)
    run.backend.script = TaskScript(
        scenario=run.state.scenario, out=run.state.out, secret=tmp_path, prefix=["apptainer", "exec", "u.sif"]
    )
    run.backend.signal("d1", "leave")
    assert cluster.asked == ["scancel --full --signal=TERM 1_1"]


# -- ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY", "PREEMPTED", "CANCELLED"])
def test_a_node_that_fails_is_a_crash_of_its_device_only(
    tmp_path: Path, cluster: FakeSlurm, state: str
) -> None:
    run = started(tmp_path, cluster)
    cluster.states["1_2"] = (state, "0")
    run.look()
    for _ in range(2):
        check_devices(run.state)
    assert [(e["kind"], e["device"], e["round"]) for e in run.state.events] == [("crash", "d2", 5)]
    assert run.running() == ["d0", "d1"]


@pytest.mark.parametrize(
    ("seen_s", "expected"), [(7.0, [("crash", "d2", 5)]), (3.0, []), (60.0, []), (None, [])]
)
def test_a_failed_node_that_slurm_has_not_reported_is_a_crash_if_others_detected_it_before_the_end(
    tmp_path: Path, cluster: FakeSlurm, seen_s: float | None, expected: list[tuple[str, str, int]]
) -> None:
    """d2 has its last record at 4 s. The run ends at 50 s."""
    run = started(tmp_path, cluster)
    devices = run.state.out / "devices"
    for device, last_s in (("d0", 49.0), ("d1", 49.0), ("d2", 4.0)):
        (devices / device / "metrics.jsonl").write_text(json.dumps({"round": 5, "t1_s": last_s}) + "\n")
    gone = {"event": "peer_gone", "peer": "d2", "kind": "crash", "t_s": seen_s}
    (devices / "d0" / "events.jsonl").write_text(json.dumps(gone) + "\n" if seen_s is not None else "")
    run.state.devices = run.backend.end(succeeded=False)
    for _ in range(2):
        run.state.record_late_crashes(end_s=50.0)
    assert [(e["kind"], e["device"], e["round"]) for e in run.state.events] == expected


def test_a_task_that_is_stopped_or_completing_has_not_ended(tmp_path: Path, cluster: FakeSlurm) -> None:
    run = started(tmp_path, cluster)
    cluster.states |= {"1_1": ("STOPPED", "0"), "1_2": ("COMPLETING", "0")}
    run.look()
    assert run.running() == ["d0", "d1"]
    assert {status.exits for status in run.state.devices.values()} == {(None,)}


def test_a_task_that_slurm_has_forgotten_ended_as_its_records_say(tmp_path: Path, cluster: FakeSlurm) -> None:
    run = started(tmp_path, cluster)
    finished = json.dumps({"event": "finished", "life": 0})
    (run.state.out / "devices" / "d1" / "events.jsonl").write_text(finished + "\n")
    del cluster.states["1_1"], cluster.states["1_2"]
    run.look()
    exits = {device: status.exits for device, status in run.state.devices.items()}
    assert exits == {"d0": (None,), "d1": (0,), "d2": (-9,)}


def test_a_device_that_failed_fails_the_run(tmp_path: Path, cluster: FakeSlurm) -> None:
    run = started(tmp_path, cluster)
    (run.state.out / "devices" / "d1" / "log.txt").write_text("no space\n")
    cluster.states["1_1"] = ("FAILED", "256")
    run.look()
    with pytest.raises(RunFailed, match=r"d1 ended with exit status 1: .*no space.*its task 1_1: FAILED"):
        check_devices(run.state)


def test_a_device_that_fails_before_all_have_started_ends_the_wait(
    tmp_path: Path, cluster: FakeSlurm
) -> None:
    run = prepared(tmp_path, cluster)
    cluster.first_state = "FAILED"
    with pytest.raises(RunFailed, match="d0 ended with exit status"):
        run.backend.start_initial()
    assert not start_gate.is_open(run.state.out, "d1")


def test_the_start_waits_for_the_queue_and_says_why(
    tmp_path: Path, cluster: FakeSlurm, monkeypatch: Patch
) -> None:
    run = prepared(tmp_path, cluster)
    cluster.first_state = "PENDING"
    run.backend.console = console = Console(
        record=True, quiet=False, width=100, file=(tmp_path / "c").open("w")
    )
    monkeypatch.setattr(slurm, "sleep", lambda seconds: claim_ids(run.state.out, "d0", "d1", "d2"))
    run.backend.start_initial()
    assert "0 of 3 devices are ready (Resources)" in console.export_text()
    assert all(start_gate.is_open(run.state.out, device) for device in ("d0", "d1", "d2"))
    console.file.close()


def test_a_node_that_does_not_see_the_folder_is_bad_input(tmp_path: Path, cluster: FakeSlurm) -> None:
    run = started(tmp_path, cluster)
    cluster.states["1_1"] = ("FAILED", str(NOT_SHARED << 8))
    with pytest.raises(InputError, match=r"--out: node node1 does not see .*run; allowed: a folder that"):
        run.look()


def test_slurm_may_give_no_answer_for_a_while(tmp_path: Path, cluster: FakeSlurm, monkeypatch: Patch) -> None:
    run = started(tmp_path, cluster)
    cluster.refuses = "squeue"
    run.look()
    assert run.running() == ["d0", "d1", "d2"]
    run.backend._looked_s = run.state.epoch_ns = -(10**18)
    with pytest.raises(RunFailed, match="squeue: error"):
        run.look()


def test_the_end_cancels_all_tasks_and_gives_no_device_a_leave(tmp_path: Path, cluster: FakeSlurm) -> None:
    run = started(tmp_path, cluster)
    assert (run.state.out / HEARTBEAT).exists()
    statuses = run.backend.end(succeeded=False)
    assert {status.exits for status in statuses.values()} == {(-9,)}
    assert [asked.split()[3:] for asked in cluster.asked] == [
        ["--state=PENDING"],
        ["--full", "--signal=KILL"],
    ]
    assert not (run.state.out / HEARTBEAT).exists()


def test_an_event_to_a_task_that_has_just_ended_is_ignored(tmp_path: Path, cluster: FakeSlurm) -> None:
    def ended(command: object, text: str) -> object:
        raise slurm_commands.SlurmFailed("scancel: error: Job/step already completing or completed")

    slurm_commands.Slurm("unweft-1", execute=ended).signal("1_1", "SIGTERM")  # type: ignore[arg-type]


# -- the whole ---------------------------------------------------------------------------------------------


@pytest.fixture
def outside(monkeypatch: Patch, cluster: FakeSlurm) -> FakeSlurm:
    """No Slurm, no evaluator, no loop; devices claim their ids as soon as they are submitted."""
    monkeypatch.setattr(slurm, "Slurm", lambda name: slurm_commands.Slurm(name, execute=cluster))
    monkeypatch.setattr(run_loop, "_follow", lambda *given: None)
    monkeypatch.setattr(evaluator_process, "evaluate_run", print)
    monkeypatch.setattr(forkserver, "PRELOAD", [])
    return cluster


def run_whole(tmp_path: Path, *overrides: str) -> Path:
    file, out = tmp_path / "whole.toml", tmp_path / "whole"
    file.write_text(SCENARIO)
    claim_ids(out, "d0", "d1", "d2")
    run_loop.run(load(file, overrides), out, Console(quiet=True), "slurm")
    return out


def test_a_run_is_one_array_and_leaves_no_key(tmp_path: Path, outside: FakeSlurm) -> None:
    out = run_whole(tmp_path)
    assert [asked.split()[0] for asked in outside.asked] == ["sbatch", "sbatch", *["scancel"] * 2]
    assert "--array=0-2 --no-requeue --signal=B:USR2@60" in outside.asked[1]
    assert not list(tmp_path.glob(".unweft-keys-*")) and not list(tmp_path.rglob("*.keys"))
    assert slurm_tasks.read(out)[1] == {"d0": "1_0", "d1": "1_1", "d2": "1_2"}
    record = json.loads((out / "run.json").read_text())
    assert record["devices"]["d1"] == {"task": "1_1", "node": "node1", "exit": -9}


def test_options_that_slurm_refuses_are_bad_input(
    tmp_path: Path, outside: FakeSlurm, monkeypatch: Patch
) -> None:
    outside.refuses = "--partition=moon"
    monkeypatch.setenv("UNWEFT_SBATCH", "--partition=moon")
    with pytest.raises(InputError, match=r"UNWEFT_SBATCH: sbatch: error: no --partition=moon"):
        run_whole(tmp_path)
    assert not list(tmp_path.glob(".unweft-keys-*"))


def test_virtual_time_is_refused(tmp_path: Path, outside: FakeSlurm) -> None:
    with pytest.raises(InputError, match="--on slurm: clock = 'virtual'"):
        run_whole(tmp_path, "clock=virtual")


def test_without_slurm_the_run_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unweft(monkeypatch, "run", QUICK, "--on", "slurm", "--out", tmp_path / "run") == 2
    assert "sbatch: not found; allowed: a machine with the commands of Slurm" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# -- unweft churn ------------------------------------------------------------------------------------------


@pytest.fixture
def churn(tmp_path: Path, cluster: FakeSlurm, monkeypatch: Patch) -> Callable[..., int]:
    run = started(tmp_path, cluster)
    (run.state.out / "scenario.toml").write_text(SCENARIO)
    finder = slurm_tasks.finder
    make = lambda name: slurm_commands.Slurm(name, execute=cluster)  # noqa: E731
    monkeypatch.setattr(slurm_tasks, "finder", lambda folder: finder(folder, make))
    return lambda *words: unweft(monkeypatch, "churn", run.state.out, *words)


def test_churn_signals_the_task_of_a_device(churn: Callable[..., int], cluster: FakeSlurm) -> None:
    assert churn("crash", "d2") == 0
    assert cluster.asked == ["scancel --batch --signal=KILL 1_2"]


def test_churn_names_a_device_that_does_not_run(
    churn: Callable[..., int], cluster: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.states["1_2"] = ("COMPLETED", "0")
    assert churn("crash", "d2") == 2
    assert "d2: does not run in" in capsys.readouterr().err and cluster.asked == []
