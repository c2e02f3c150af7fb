"""Leaves that are delivered to containers, and the end of a run in containers, with a fake docker command."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from emulation.commands import churn
from emulation.launch import early_end
from emulation.launch.evaluator_process import EvaluatorProcess
from emulation.testbed.docker import DockerFailed, Project
from peers.errors import InputError
from tests.support.fake_docker import Docker, claim_ids, started

HOSTS = [f"{n}" * 12 for n in range(3)]
DELIVER = "python -m emulation.testbed.leave_delivery"


@pytest.fixture
def docker(tmp_path: Path) -> Docker:
    return Docker(list(claim_ids(tmp_path / "run").values()))


def test_leaves_are_copied_in_one_container_and_all_that_run_are_told(docker: Docker) -> None:
    docker.states[HOSTS[0]] = ("exited", 3)
    Project("tb", execute=docker).deliver_leaves(["d0"])
    assert docker.asked == [
        f"exec {HOSTS[1]} {DELIVER} d0",
        *(f"kill --signal SIGUSR1 {host}" for host in HOSTS[1:]),
    ]


def test_a_paused_container_is_neither_asked_nor_told(docker: Docker) -> None:
    docker.states |= {HOSTS[0]: ("exited", 3), HOSTS[1]: ("paused", 0)}
    Project("tb", execute=docker).deliver_leaves(["d0"])
    assert docker.asked == [f"exec {HOSTS[2]} {DELIVER} d0", f"kill --signal SIGUSR1 {HOSTS[2]}"]


def test_a_leave_that_is_none_is_an_error_and_nobody_is_told(docker: Docker) -> None:
    docker.states[HOSTS[0]] = ("exited", 0)
    docker.fails = "exec"
    with pytest.raises(DockerFailed, match=r"docker exec 111111111111 python …: cannot exec"):
        Project("tb", execute=docker).deliver_leaves(["d0"])
    assert len(docker.asked) == 1


def test_without_a_container_that_runs_nothing_is_asked(docker: Docker) -> None:
    docker.states = dict.fromkeys(HOSTS, ("exited", 0))
    Project("tb", execute=docker).deliver_leaves(["d0"])
    assert docker.asked == []


def test_churn_delivers_the_leave_of_a_container_that_has_ended(
    docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`unweft churn PROJECT leave d0 d1`: d0 has ended, and d1 runs."""
    docker.states[HOSTS[0]] = ("exited", 3)
    say = docker.say

    def with_ids(words: list[str]) -> str:
        claimed = '{"d0": "000000000000", "d1": "111111111111", "d2": "222222222222"}'
        return claimed if words[-1] == "emulation.testbed.id_leases" else say(words)

    monkeypatch.setattr(docker, "say", with_ids)
    churn._containers(Project("tb", execute=docker), churn.Kind.LEAVE, ["d0", "d1"], None)
    asked = [words for words in docker.asked if "id_leases" not in words]
    told = [f"kill --signal SIGUSR1 {host}" for host in HOSTS[1:]]
    assert asked[:3] == [f"exec {HOSTS[1]} {DELIVER} d0", *told]
    assert f"kill --signal SIGTERM {HOSTS[1]}" in asked
    assert not any(HOSTS[0] in words for words in asked)
    with pytest.raises(InputError, match="d9"):
        churn._containers(Project("tb", execute=docker), churn.Kind.LEAVE, ["d9"], None)


def test_an_interrupted_run_tells_every_container_to_end_and_waits(
    tmp_path: Path, docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `docker compose down` does by SIGTERM to all, but in one message: no device counts it as a leave."""
    run = started(tmp_path, docker)
    docker.states[HOSTS[2]] = ("exited", 137)
    finished: list[str] = []

    class Evaluator:
        def finish(self) -> None:
            finished.append("evaluator")

        def wait(self, seconds: float) -> bool:
            return True

    def sleep(seconds: float) -> None:  # the devices export and end meanwhile
        assert not finished
        docker.states = dict.fromkeys(HOSTS, ("exited", 0))

    monkeypatch.setattr("emulation.launch.early_end.time.sleep", sleep)
    evaluator: Any = cast(EvaluatorProcess, Evaluator())
    early_end.end_early(run.state, run.backend, evaluator, Console(quiet=True))
    assert docker.asked == [f"kill --signal SIGUSR2 {host}" for host in HOSTS[:2]]
    assert finished == ["evaluator"] and run.running() == []
