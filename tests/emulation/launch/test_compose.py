"""The backend `compose`, with a docker command that only records its arguments: events, ends, mounts."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from emulation.commands import run as run_command
from emulation.launch import compose_project, evaluator_process, forkserver, run_keys, run_loop
from emulation.launch.errors import RunFailed
from emulation.launch.run_loop import check_devices
from emulation.launch.run_state import RunState
from emulation.scenario.loading import load
from emulation.scenario.schema import Scenario
from emulation.testbed import docker as docker_cli
from emulation.testbed import id_leases
from emulation.testbed.docker import DockerFailed, Project
from peers.errors import InputError
from peers.runtime import partition
from tests.support.command_line import unweft
from tests.support.fake_docker import SCENARIO, Docker, claim_ids, run_of, started
from tests.support.watched import append, event, served


@pytest.fixture
def hosts(tmp_path: Path) -> dict[str, str]:
    return claim_ids(tmp_path / "run")


@pytest.fixture
def docker(hosts: dict[str, str]) -> Docker:
    return Docker(list(hosts.values()))


# -- events ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "asked"),
    [
        ('round = 5\nkind = "leave"\ndevice = "d1"', "kill --signal SIGTERM 111111111111"),
        ('round = 5\nkind = "retire"\ndevice = "d1"', "kill --signal SIGINT 111111111111"),
        ('round = 5\nkind = "crash"\ndevice = "d1"', "kill --signal SIGKILL 111111111111"),
        ('round = 5\nkind = "stall"\ndevice = "d1"\nduration_s = 1.0', "pause 111111111111"),
    ],
)
def test_an_event_is_a_docker_command_once_all_devices_have_closed_its_round(
    tmp_path: Path, docker: Docker, event: str, asked: str
) -> None:
    early = started(tmp_path, docker, event, closed=4)
    early.inject()
    assert docker.asked == [] and len(early.pending()) == 1
    run = started(tmp_path, docker, event)
    run.inject()
    assert docker.asked == [asked] and run.pending() == []
    assert [(e["round"], e["kind"]) for e in run.state.events] == [(5, event.split('"')[1])]


def test_a_joiner_waits_at_its_gate_and_begins_at_its_event(tmp_path: Path, docker: Docker) -> None:
    run = started(tmp_path, docker, 'round = 5\nkind = "join"\ndevice = "d7"')
    docker.states["7" * 12] = ("running", 0)
    (run.state.out / id_leases.FOLDER / "d7").write_text(f"token {'7' * 12}\n")
    run.look()
    assert "d7" in run.state.devices and "d7" not in run.running()  # it holds no round back
    run.inject()
    assert "d7" in run.running() and docker.asked == []


def test_a_container_that_is_added_knows_its_id(docker: Docker) -> None:
    """Containers that have ended are not started again."""
    docker.states["2" * 12] = ("exited", 137)
    Project("tb", execute=docker).join("d7")
    assert docker.created_with["UNWEFT_ID"] == "d7"
    assert docker.asked == [
        "compose -p tb create --no-recreate --no-build --scale device=4 device",
        "start 777777777777",
    ]
    assert docker.states == {
        **{"0" * 12: ("running", 0), "1" * 12: ("running", 0)},
        **{"2" * 12: ("exited", 137), "7" * 12: ("running", 0)},
    }


def test_a_stall_ends_after_its_seconds(tmp_path: Path, docker: Docker) -> None:
    run = started(tmp_path, docker, 'round = 5\nkind = "stall"\ndevice = "d1"\nduration_s = 60.0')
    run.inject()
    run.look()
    run.inject()
    run.state.epoch_ns -= 61 * 10**9  # 61 s pass
    run.inject()
    assert docker.asked == ["pause 111111111111", "unpause 111111111111"]


def test_a_returning_device_gets_its_container_back(tmp_path: Path, docker: Docker) -> None:
    run = started(
        tmp_path,
        docker,
        'round = 3\nkind = "crash"\ndevice = "d1"',
        'round = 5\nkind = "return"\ndevice = "d1"',
    )
    run.inject()
    assert run.pending() == ["return"]  # its last life has not ended yet
    run.look()
    assert docker.asked == ["kill --signal SIGKILL 111111111111", "start 111111111111"]
    run.look()
    assert "d1" not in run.running()  # it is ready and waits
    run.inject()
    assert "d1" in run.running() and run.pending() == []
    check_devices(run.state)
    assert [e["kind"] for e in run.state.events] == ["crash", "return"]


def test_a_partition_is_emulated_as_among_processes(tmp_path: Path, docker: Docker) -> None:
    run = started(tmp_path, docker, 'round = 5\nkind = "partition"\ngroups = [["d0"], ["d1", "d2"]]')
    run.inject()
    assert partition.read(run.state.out / "devices" / "d0") == {"d1", "d2"}
    assert partition.read(run.state.out / "devices" / "d1") == {"d0"}
    assert docker.asked == [f"kill --signal SIGUSR1 {host * 12}" for host in "012"]


def test_a_device_that_returns_after_the_heal_reaches_every_device(tmp_path: Path, docker: Docker) -> None:
    run = started(
        tmp_path,
        docker,
        'round = 3\nkind = "partition"\ngroups = [["d0"], ["d1", "d2"]]',
        'round = 4\nkind = "crash"\ndevice = "d1"',
        'round = 5\nkind = "heal"',
    )
    run.inject()
    run.look()
    assert partition.read(run.state.out / "devices" / "d1") == frozenset()


def test_nothing_is_due_before_devices_have_ids(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    run = run_of(Scenario(), tmp_path, Docker(["a" * 12]))
    run.look()
    assert run.running() == ["a" * 12] and not run.state.last_round


# -- ends --------------------------------------------------------------------------------------------------


def test_a_kill_from_outside_is_a_crash(tmp_path: Path, docker: Docker) -> None:
    run = started(tmp_path, docker)
    docker.states["2" * 12] = ("exited", 137)
    run.look()
    for _ in range(2):
        check_devices(run.state)
    assert [(e["kind"], e["device"], e["round"]) for e in run.state.events] == [("crash", "d2", 5)]


def test_a_kill_by_the_scenario_is_recorded_once(tmp_path: Path, docker: Docker) -> None:
    run = started(tmp_path, docker, 'round = 5\nkind = "crash"\ndevice = "d2"')
    run.inject()
    run.look()
    check_devices(run.state)
    assert [e["kind"] for e in run.state.events] == ["crash"]


def test_a_device_that_failed_fails_the_run(tmp_path: Path, docker: Docker) -> None:
    run = started(tmp_path, docker)
    docker.states["2" * 12] = ("exited", 1)
    run.look()
    with pytest.raises(
        RunFailed,
        match=r"d2 ended with exit status 1: no exception .* last line of its output: what it said last",
    ):
        check_devices(run.state)


def test_the_run_fails_when_all_devices_were_killed(tmp_path: Path, docker: Docker) -> None:
    run = started(tmp_path, docker)
    docker.states = dict.fromkeys(docker.states, ("exited", 137))
    run.look()
    with pytest.raises(RunFailed, match="every device was killed"):
        check_devices(run.state)


# -- the whole ---------------------------------------------------------------------------------------------


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, docker: Docker) -> Docker:
    """No docker, no evaluator, no loop."""
    monkeypatch.setattr(
        compose_project, "Project", lambda name, files, given: Project(name, files, given, execute=docker)
    )
    monkeypatch.setattr(run_loop, "_follow", lambda *given: None)
    monkeypatch.setattr(evaluator_process, "evaluate_run", print)
    monkeypatch.setattr(forkserver, "PRELOAD", [])
    return docker


def run(tmp_path: Path, *overrides: str) -> Path:
    file = tmp_path / "whole.toml"
    file.write_text(SCENARIO)
    out = tmp_path / "whole"
    run_loop.run(load(file, overrides), out, Console(quiet=True), "compose")
    return out


def test_a_run_builds_the_image_and_removes_all_containers(tmp_path: Path, outside: Docker) -> None:
    out = run(tmp_path)
    verbs = [words.split(".json ")[1] for words in outside.asked]
    assert verbs == ["build device", "up -d device", "down -v --timeout 1"]
    given = outside.variables
    assert (given["UNWEFT_DEVICES"], given["UNWEFT_RESULTS"]) == ("3", str(out))
    assert not Path(given["UNWEFT_KEYS_FROM"]).exists()
    assert (out / "run.json").exists() and not list(out.rglob("*.keys"))


def test_the_page_follows_a_run_in_containers(
    tmp_path: Path, outside: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`unweft run --on compose --watch`: the page reads what containers write into the run's folder."""
    shown: list[dict[str, Any]] = []

    def follow(state: RunState, *_: object) -> None:
        append(state.out / "devices/d1/events.jsonl", event(1.0, "started"), event(2.0, "training"))
        state.record_event(5, "crash", "d0")
        with urllib.request.urlopen(f"{urls[0]}events", timeout=20) as stream:
            shown.append(json.loads(stream.readline().removeprefix(b"data: ")))

    @contextmanager
    def beside(folder: Path) -> Iterator[str]:
        with served(folder) as url:
            urls.append(url)
            yield url

    urls: list[str] = []
    monkeypatch.setattr(run_loop, "_follow", follow)
    monkeypatch.setattr(run_command, "write_report", lambda *given: 0)
    file, out = tmp_path / "whole.toml", tmp_path / "whole"
    file.write_text(SCENARIO)
    page = cast(ModuleType, SimpleNamespace(beside=beside))
    assert run_command.execute(load(file), out, "compose", Console(quiet=True), serving=page) == 0
    states = {device["id"]: device["state"] for device in shown[0]["devices"]}
    assert (states["d0"], states["d1"]) == ("crashed", "training")
    assert "d0 crashes" in json.dumps(shown[0])


@pytest.mark.parametrize("verb", ["build", "up"])
def test_a_docker_command_that_fails_fails_the_run(tmp_path: Path, outside: Docker, verb: str) -> None:
    outside.fails = verb
    with pytest.raises(RunFailed, match=f"cannot {verb}"):
        run(tmp_path)
    assert verb == "build" or outside.asked[-1].endswith("down -v --timeout 1")


def test_after_an_interrupt_no_container_is_left(
    tmp_path: Path, outside: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_loop, "_follow", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert outside.asked[-1].endswith("down -v --timeout 1")
    assert (tmp_path / "whole" / "run.json").exists()
    assert not multiprocessing.active_children()


def test_with_an_allow_list_each_device_has_a_key_pair(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(SCENARIO)
    run_keys.write(load(file, ["keys.allow_list=true"]), tmp_path / "keys")
    names = {path.name for path in (tmp_path / "keys").iterdir()}
    assert names == {"network.keys", "allowed.json", "d0.curve", "d1.curve", "d2.curve"}


def test_paths_of_the_scenario_have_the_same_names_in_a_container(tmp_path: Path) -> None:
    file, data = tmp_path / "s.toml", tmp_path / "texts"
    data.mkdir()
    file.write_text(SCENARIO)
    scenario = load(file, ["data.kind=jsonl", f"data.path={data}"])
    written = json.loads(compose_project.write_mounts(scenario, tmp_path / "m.json").read_text())
    (volume,) = written["services"]["device"]["volumes"]
    assert volume == {"type": "bind", "source": str(data), "target": str(data), "read_only": True}


def test_virtual_time_is_not_for_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.toml"
    file.write_text(SCENARIO)
    out = tmp_path / "run"
    given = ("run", file, "--on", "compose", "--clock", "virtual", "--out", out)
    assert unweft(monkeypatch, *given) == 2
    assert "--on compose: clock = 'virtual'" in capsys.readouterr().err and not out.exists()


def test_a_missing_compose_file_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compose_project.FILE_VARIABLE, str(tmp_path / "none.yml"))
    with pytest.raises(InputError, match=r"none\.yml is not there"):
        run(tmp_path)


def test_docker_says_why(docker: Docker) -> None:
    docker.fails = "pause"
    with pytest.raises(DockerFailed, match=r"docker pause .*: cannot pause"):
        Project("tb", execute=docker).pause(docker_cli.Container("x", "x", "running", None))


def test_the_network_gets_a_subnet_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = ["172.17.0.0/16", "fd00::/64", *(f"10.93.{n}.0/24" for n in range(1, 255) if n != 77)]

    def engine(command: Sequence[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        said = "a b" if "ls" in command else " ".join(taken)
        return subprocess.CompletedProcess(list(command), 0, said, "")

    assert docker_cli.free_subnet(engine) == "10.93.77.0/24"
    taken.append("10.93.76.0/23")
    with pytest.raises(DockerFailed, match="every subnet"):
        docker_cli.free_subnet(engine)
