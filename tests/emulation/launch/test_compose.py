"""`unweft run --on compose`, with a docker that only writes down what it is asked: events, ends, mounts."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from emulation.launch import compose
from emulation.launch.compose import Run
from emulation.launch.local import RunFailed
from emulation.scenario.loading import load
from emulation.scenario.schema import Scenario
from emulation.testbed import docker as docker_cli
from emulation.testbed import id_leases, start_gate
from emulation.testbed.docker import DockerFailed, Project
from peers.errors import InputError
from peers.runtime import partition
from tests.support.cli import unweft

SCENARIO = """
[devices]
count = 3
[round]
count = 20
"""
JUDGE = cast(Any, type("Evaluator", (), {"exitcode": None}))


class Docker:
    """Containers by their ids; commands change their states as docker would."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.states = dict.fromkeys(hosts, ("running", 0))
        self.asked: list[str] = []
        self.variables: Mapping[str, str] = {}
        self.created_with: Mapping[str, str] = {}
        self.fails = ""

    def __call__(
        self, command: Sequence[str], variables: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        words = list(command[1:])
        self.variables = variables
        if words[0] not in ("ps", "inspect", "network"):  # which only look
            self.asked.append(" ".join(words))
        if self.fails and self.fails in words:
            return subprocess.CompletedProcess(command, 1, "", f"cannot {self.fails}")
        return subprocess.CompletedProcess(command, 0, self.say(words), "")

    def say(self, words: list[str]) -> str:
        match words[0]:
            case "ps":
                return " ".join(self.states) if "label=com.docker.compose.service=device" in words else ""
            case "inspect":
                about = [
                    {"Id": host.ljust(64, "0"), "Name": f"/{host}", "State": {"Status": s, "ExitCode": code}}
                    for host, (s, code) in self.states.items()
                ]
                return json.dumps(about)
            case "logs":
                return "what it said last\n"
            case "compose" if "create" in words:
                self.states["7" * 12] = ("created", 0)
                self.created_with = self.variables
            case "pause" | "unpause" | "start":
                self.states[words[-1]] = ("paused" if words[0] == "pause" else "running", 0)
            case "kill":
                ended = {"SIGTERM": 0, "SIGINT": 0, "SIGKILL": 137}
                if words[2] in ended:
                    self.states[words[-1]] = ("exited", ended[words[2]])
        return ""


@pytest.fixture
def hosts(tmp_path: Path) -> dict[str, str]:
    """Three devices have claimed their ids, each in its container."""
    folder = tmp_path / "run" / id_leases.FOLDER
    folder.mkdir(parents=True)
    found = {f"d{i}": f"{i}" * 12 for i in range(3)}
    for device, host in found.items():
        (folder / device).write_text(f"token {host}\n")
        (tmp_path / "run" / "devices" / device).mkdir(parents=True)
    return found


@pytest.fixture
def docker(hosts: dict[str, str]) -> Docker:
    return Docker(list(hosts.values()))


def run_state(scenario: Scenario, tmp_path: Path, docker: Docker) -> Run:
    return Run(
        scenario=scenario,
        out=tmp_path / "run",
        epoch_ns=0,
        pending=list(scenario.events),
        project=Project("tb", execute=docker),
    )


def started(tmp_path: Path, docker: Docker, *events: str, closed: int = 5) -> Run:
    """A run of which every device has closed a round."""
    file = tmp_path / "scenario.toml"
    file.write_text(SCENARIO + "".join(f"[[event]]\n{event}\n" for event in events))
    scenario = load(file)
    for device in scenario.initial_devices:
        path = tmp_path / "run" / "devices" / device / "metrics.jsonl"
        path.write_text(json.dumps({"round": closed}) + "\n")
        start_gate.open_to(tmp_path / "run", device)
    state = run_state(scenario, tmp_path, docker)
    compose._look(state)
    return state


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
def test_an_event_is_what_docker_does_once_all_have_closed_its_round(
    tmp_path: Path, docker: Docker, event: str, asked: str
) -> None:
    early = started(tmp_path, docker, event, closed=4)
    compose._inject_due(early)
    assert docker.asked == [] and len(early.pending) == 1
    state = started(tmp_path, docker, event)
    compose._inject_due(state)
    assert docker.asked == [asked] and state.pending == []
    assert [(e["round"], e["kind"]) for e in state.events] == [(5, event.split('"')[1])]


def test_one_that_joins_has_been_ready_and_begins(tmp_path: Path, docker: Docker) -> None:
    state = started(tmp_path, docker, 'round = 5\nkind = "join"\ndevice = "d7"')
    docker.states["7" * 12] = ("running", 0)
    (state.out / id_leases.FOLDER / "d7").write_text(f"token {'7' * 12}\n")
    compose._look(state)
    assert "d7" in state.containers and "d7" not in state.running()  # it holds no round back
    compose._inject_due(state)
    assert "d7" in state.running() and docker.asked == []


def test_a_container_more_knows_its_id(docker: Docker) -> None:
    """Those that have ended stay as they are."""
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
    state = started(tmp_path, docker, 'round = 5\nkind = "stall"\ndevice = "d1"\nduration_s = 60.0')
    compose._inject_due(state)
    compose._look(state)
    compose._inject_due(state)
    state.epoch_ns -= 61 * 10**9  # as if so much later
    compose._inject_due(state)
    assert docker.asked == ["pause 111111111111", "unpause 111111111111"]


def test_one_that_returns_is_the_same_container(tmp_path: Path, docker: Docker) -> None:
    state = started(
        tmp_path,
        docker,
        'round = 3\nkind = "crash"\ndevice = "d1"',
        'round = 5\nkind = "return"\ndevice = "d1"',
    )
    compose._inject_due(state)
    assert [e.kind for e in state.pending] == ["return"]  # its last life has not quite ended
    compose._look(state)
    compose._ready_those_who_return(state)
    assert docker.asked == ["kill --signal SIGKILL 111111111111", "start 111111111111"]
    compose._look(state)
    assert "d1" not in state.running()  # it is ready, and waits
    compose._inject_due(state)
    assert "d1" in state.running() and state.pending == []


def test_a_partition_is_emulated_as_among_processes(tmp_path: Path, docker: Docker) -> None:
    state = started(tmp_path, docker, 'round = 5\nkind = "partition"\ngroups = [["d0"], ["d1", "d2"]]')
    compose._inject_due(state)
    assert partition.read(state.out / "devices" / "d0") == {"d1", "d2"}
    assert partition.read(state.out / "devices" / "d1") == {"d0"}
    assert docker.asked == [f"kill --signal SIGUSR1 {host * 12}" for host in "012"]


def test_one_that_is_gone_hears_everyone_when_it_returns_after_the_heal(
    tmp_path: Path, docker: Docker
) -> None:
    state = started(
        tmp_path,
        docker,
        'round = 3\nkind = "partition"\ngroups = [["d0"], ["d1", "d2"]]',
        'round = 4\nkind = "crash"\ndevice = "d1"',
        'round = 5\nkind = "heal"',
    )
    compose._inject_due(state)
    compose._look(state)
    assert partition.read(state.out / "devices" / "d1") == frozenset()


def test_before_they_have_ids_nothing_is_due(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    docker = Docker(["a" * 12])
    state = run_state(Scenario(), tmp_path, docker)
    compose._look(state)
    assert list(state.running()) == ["a" * 12] and not state.last_round


# -- ends --------------------------------------------------------------------------------------------------


def test_a_kill_from_outside_is_a_crash(tmp_path: Path, docker: Docker) -> None:
    state = started(tmp_path, docker)
    docker.states["2" * 12] = ("exited", 137)
    compose._look(state)
    for _ in range(2):
        compose._check_ends(state, JUDGE)
    assert [(e["kind"], e["device"], e["round"]) for e in state.events] == [("crash", "d2", 5)]


def test_a_kill_by_the_scenario_is_counted_once(tmp_path: Path, docker: Docker) -> None:
    state = started(tmp_path, docker, 'round = 5\nkind = "crash"\ndevice = "d2"')
    compose._inject_due(state)
    compose._look(state)
    compose._check_ends(state, JUDGE)
    assert [e["kind"] for e in state.events] == ["crash"]


def test_one_that_failed_fails_the_run(tmp_path: Path, docker: Docker) -> None:
    state = started(tmp_path, docker)
    docker.states["2" * 12] = ("exited", 1)
    compose._look(state)
    with pytest.raises(RunFailed, match="d2 ended with exit status 1: what it said last"):
        compose._check_ends(state, JUDGE)


def test_when_all_were_killed_the_run_has_failed(tmp_path: Path, docker: Docker) -> None:
    state = started(tmp_path, docker)
    docker.states = dict.fromkeys(docker.states, ("exited", 137))
    compose._look(state)
    with pytest.raises(RunFailed, match="every device was killed"):
        compose._check_ends(state, JUDGE)


def test_an_evaluator_that_failed_fails_the_run(tmp_path: Path, docker: Docker) -> None:
    evaluator = cast(Any, type("Evaluator", (), {"exitcode": 1}))
    with pytest.raises(RunFailed, match="evaluator"):
        compose._check_ends(started(tmp_path, docker), evaluator)


# -- the whole ---------------------------------------------------------------------------------------------


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, docker: Docker) -> Docker:
    """No real docker, no real judge."""
    monkeypatch.setattr(
        compose, "Project", lambda name, files, given: Project(name, files, given, execute=docker)
    )
    monkeypatch.setattr(compose, "_live", lambda state, evaluator, console: None)
    monkeypatch.setattr(compose, "evaluate_run", print)
    monkeypatch.setattr(compose, "PRELOAD", [])
    return docker


def run(tmp_path: Path, *overrides: str) -> Path:
    file = tmp_path / "whole.toml"
    file.write_text(SCENARIO)
    out = tmp_path / "whole"
    compose.run(load(file, overrides), out, Console(quiet=True))
    return out


def test_it_builds_starts_and_takes_everything_down(tmp_path: Path, outside: Docker) -> None:
    out = run(tmp_path)
    verbs = [words.split(".json ")[1] for words in outside.asked]
    assert verbs == ["build device", "up -d device", "down -v --timeout 1"]
    given = outside.variables
    assert (given["UNWEFT_DEVICES"], given["UNWEFT_RESULTS"]) == ("3", str(out))
    assert not Path(given["UNWEFT_KEYS_FROM"]).exists()
    assert (out / "run.json").exists() and not list(out.rglob("*.keys"))


@pytest.mark.parametrize("verb", ["build", "up"])
def test_what_docker_cannot_do_fails_the_run(tmp_path: Path, outside: Docker, verb: str) -> None:
    outside.fails = verb
    with pytest.raises(RunFailed, match=f"cannot {verb}"):
        run(tmp_path)
    assert verb == "build" or outside.asked[-1].endswith("down -v --timeout 1")


def test_an_interrupt_leaves_nothing(
    tmp_path: Path, outside: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compose, "_live", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert outside.asked[-1].endswith("down -v --timeout 1")
    assert (tmp_path / "whole" / "run.json").exists()
    assert not multiprocessing.active_children()


def test_with_an_allow_list_each_device_has_a_pair(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(SCENARIO)
    compose._make_keys(load(file, ["keys.allow_list=true"]), tmp_path / "keys")
    names = {path.name for path in (tmp_path / "keys").iterdir()}
    assert names == {"network.keys", "allowed.json", "d0.curve", "d1.curve", "d2.curve"}


def test_what_the_scenario_names_here_has_the_same_name_there(tmp_path: Path) -> None:
    file, data = tmp_path / "s.toml", tmp_path / "texts"
    data.mkdir()
    file.write_text(SCENARIO)
    scenario = load(file, ["data.kind=jsonl", f"data.path={data}"])
    written = json.loads(compose._mounts(scenario, tmp_path / "m.json").read_text())
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


def test_a_compose_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compose.FILE_VARIABLE, str(tmp_path / "none.yml"))
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
