"""`unweft churn`: make something happen to devices that run, be they processes of a run or containers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import psutil
import typer

from emulation.analysis.records import read_lines
from emulation.testbed import churn_log
from emulation.testbed.docker import SIGNALS, Container, DockerFailed, Project
from peers.errors import InputError

EXAMPLE = "Example: unweft churn unweft leave d2 (or: unweft churn runs/first stall d1 d3 --seconds 2)"


class Kind(StrEnum):
    """What can happen to a device."""

    LEAVE = "leave"
    RETIRE = "retire"
    CRASH = "crash"
    STALL = "stall"
    RESUME = "resume"
    JOIN = "join"
    RETURN = "return"
    PARTITION = "partition"
    HEAL = "heal"


NUMBERS = {
    Kind.LEAVE: signal.SIGTERM,
    Kind.RETIRE: signal.SIGINT,
    Kind.CRASH: signal.SIGKILL,
    Kind.STALL: signal.SIGSTOP,
    Kind.RESUME: signal.SIGCONT,
}
NOT_NOTED = (Kind.RESUME, Kind.JOIN, Kind.RETURN)  # devices tell of it themselves


def churn(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="The folder of a run that goes on, or a compose project.")
    ],
    event: Annotated[
        Kind, typer.Argument(metavar="EVENT", help=f"{', '.join(Kind)}. Processes: the first five.")
    ],
    devices: Annotated[list[str], typer.Argument(metavar="DEVICE...", help="Ids, for instance d2.")],
    seconds: Annotated[
        float | None, typer.Option(min=0, help="With stall and partition: undo it after so many seconds.")
    ] = None,
) -> None:
    """Make something happen to devices: leave, retire, crash, stall, … as a scenario's events do."""
    if seconds is not None and event not in (Kind.STALL, Kind.PARTITION):
        raise InputError(f"--seconds: has no meaning with {event}; allowed: with stall and partition")
    try:
        if (Path(target) / "scenario.toml").is_file():
            _processes(Path(target), event, devices, seconds)
        else:
            _containers(Project(target), event, devices, seconds)
    except DockerFailed as error:
        raise InputError(f"{target}: {error}") from None


# -- processes -------------------------------------------------------------------------------------------


def _processes(run: Path, event: Kind, devices: list[str], seconds: float | None) -> None:
    if event not in NUMBERS:
        allowed = ", ".join(NUMBERS)
        raise InputError(f"{event}: not to processes of a run; allowed: {allowed}, or containers")
    pids = {device: pid_of(run, device) for device in devices}
    if event not in NOT_NOTED:
        churn_log.note(run, event, devices, **_lasting(event, seconds))
    for pid in pids.values():
        os.kill(pid, NUMBERS[event])
    if seconds is not None:
        time.sleep(seconds)
        for pid in pids.values():
            os.kill(pid, signal.SIGCONT)


def pid_of(run: Path, device: str) -> int:
    """The process of a device of a run. Raises InputError if there is none.

    Numbers of processes are used again: it must be one that writes what this device writes.
    """
    path = run / "devices" / device / "events.jsonl"
    pids = [int(line["pid"]) for line in read_lines(path) if line["event"] == "started"]
    try:
        if pids and any(Path(file.path) == path.resolve() for file in psutil.Process(pids[-1]).open_files()):
            return pids[-1]
    except psutil.Error:
        pass
    known = sorted(folder.name for folder in (run / "devices").glob("*"))
    raise InputError(f"{device}: does not run in {run}; allowed: a device that runs, of {', '.join(known)}")


def _lasting(event: Kind, seconds: float | None) -> dict[str, float]:
    return {} if seconds is None or event is not Kind.STALL else {"duration_s": seconds}


# -- containers ------------------------------------------------------------------------------------------


def _containers(project: Project, event: Kind, devices: list[str], seconds: float | None) -> None:
    if event is Kind.JOIN:
        for device in devices:
            project.join(device)
        return
    known = project.devices()
    for device in devices:
        if device not in known:
            raise InputError(f"{device}: not in {project.name}; allowed: {', '.join(sorted(known))}")
    chosen = [known[device] for device in devices]
    if event not in NOT_NOTED:
        project.note(event, _whom(event, devices))
    for container in chosen:
        _do(project, event)(container)
    if seconds is not None:
        time.sleep(seconds)
        for container in chosen:
            _do(project, Kind.RESUME if event is Kind.STALL else Kind.HEAL)(container)


def _whom(event: Kind, devices: list[str]) -> list[str]:
    """As records name them: of a partition its groups in one line, and each container is one alone."""
    return {Kind.PARTITION: [" | ".join(devices)], Kind.HEAL: [""]}.get(event, devices)


def _do(project: Project, event: Kind) -> Callable[[Container], None]:
    if event in SIGNALS:
        return lambda container: project.signal(container, SIGNALS[event])
    return {
        Kind.STALL: project.pause,
        Kind.RESUME: project.unpause,
        Kind.RETURN: project.start,
        Kind.PARTITION: project.disconnect,
        Kind.HEAL: project.connect,
    }[event]
