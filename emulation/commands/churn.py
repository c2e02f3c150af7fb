"""`unweft churn`: an event for devices that run: as processes, tasks of Slurm, containers or pods."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import psutil
import typer

from coordinator_free.membership.signed_records import Record
from emulation.analysis.records import read_lines
from emulation.testbed import churn_log, leave_delivery, slurm_tasks
from emulation.testbed.docker import SIGNALS, Container, DockerFailed, Project
from emulation.testbed.kubernetes import Devices, KubectlFailed, Pod
from emulation.testbed.slurm import SlurmFailed
from peers.errors import InputError
from peers.runtime import partition

EXAMPLE = "Example: unweft churn unweft leave d2 (or: unweft churn runs/first stall d1 d3 --seconds 2)"


class Kind(StrEnum):
    """An event of a device."""

    LEAVE = "leave"
    RETIRE = "retire"
    CRASH = "crash"
    STALL = "stall"
    RESUME = "resume"
    JOIN = "join"
    RETURN = "return"
    PARTITION = "partition"
    HEAL = "heal"


PROCESS_SIGNALS = {
    Kind.LEAVE: signal.SIGTERM,
    Kind.RETIRE: signal.SIGINT,
    Kind.CRASH: signal.SIGKILL,
    Kind.STALL: signal.SIGSTOP,
    Kind.RESUME: signal.SIGCONT,
}
KUBERNETES = "kubernetes:"
NOT_LOGGED = (Kind.RESUME, Kind.JOIN, Kind.RETURN)  # the records of devices show these


def churn(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="The folder of a run in progress, a compose project, or kubernetes:NAMESPACE.",
        ),
    ],
    event: Annotated[
        Kind, typer.Argument(metavar="EVENT", help=f"{', '.join(Kind)}. For processes: the first five.")
    ],
    devices: Annotated[list[str], typer.Argument(metavar="DEVICE...", help="Ids, for instance d2.")],
    seconds: Annotated[
        float | None,
        typer.Option(min=0, help="For stall and partition: seconds until the event is undone."),
    ] = None,
) -> None:
    """Cause an event for devices (leave, retire, crash, stall, …), as a scenario's events do."""
    if seconds is not None and event not in (Kind.STALL, Kind.PARTITION):
        raise InputError(f"--seconds: has no meaning with {event}; allowed: with stall and partition")
    try:
        if (Path(target) / "scenario.toml").is_file():
            _run_folder(Path(target), event, devices, seconds)
        elif target.startswith(KUBERNETES):
            _pods(Devices(target.removeprefix(KUBERNETES)), event, devices, seconds)
        else:
            _containers(Project(target), event, devices, seconds)
    except (DockerFailed, SlurmFailed, KubectlFailed) as error:
        raise InputError(f"{target}: {error}") from None


# -- devices of a run folder --------------------------------------------------------------------------------


Send = Callable[[signal.Signals], None]  # sends a signal to one device


def _run_folder(run: Path, event: Kind, devices: list[str], seconds: float | None) -> None:
    """An event for processes of this machine, or for array tasks of Slurm."""
    if event not in PROCESS_SIGNALS:
        allowed = ", ".join(PROCESS_SIGNALS)
        raise InputError(f"{event}: not to processes of a run; allowed: {allowed}, or containers")
    find = _finder(run)
    if event is Kind.LEAVE:
        gone = [device for device in devices if _runs(find, device) is None]
        _deliver(run, find, leave_delivery.required(run, gone))
        devices = [device for device in devices if device not in gone]
    chosen = [find(device) for device in devices]
    if event not in NOT_LOGGED:
        churn_log.log_event(run, event, devices, **_duration(event, seconds))
    for send in chosen:
        send(PROCESS_SIGNALS[event])
    if seconds is not None:
        time.sleep(seconds)
        for send in chosen:
            send(signal.SIGCONT)


def _finder(run: Path) -> Callable[[str], Send]:
    """Finds a device of a run: it returns how to signal it, or raises InputError if it does not run."""
    if slurm_tasks.exists(run):
        return slurm_tasks.finder(run)
    return lambda device: partial(os.kill, pid_of(run, device))


def _runs(find: Callable[[str], Send], device: str) -> Send | None:
    try:
        return find(device)
    except InputError:
        return None


def _deliver(run: Path, find: Callable[[str], Send], wishes: list[Record]) -> None:
    """Deliver leaves that nobody has confirmed to all devices that run. Raises InputError if none runs."""
    if not wishes:
        return
    found = {device: send for device in _known(run) if (send := _runs(find, device)) is not None}
    if not found:
        raise InputError(f"{run}: no device runs that could hear of a leave")
    leave_delivery.deliver(run, wishes, found)
    for send in found.values():
        send(partition.SIGNAL)


def _known(run: Path) -> list[str]:
    return sorted(folder.name for folder in (run / "devices").glob("*"))


def pid_of(run: Path, device: str) -> int:
    """The process id of a device of a run. Raises InputError if the device does not run.

    An id may belong to another process by now. The process must have the device's record file open.
    """
    path = run / "devices" / device / "events.jsonl"
    pids = [int(line["pid"]) for line in read_lines(path) if line["event"] == "started"]
    try:
        if pids and any(Path(file.path) == path.resolve() for file in psutil.Process(pids[-1]).open_files()):
            return pids[-1]
    except psutil.Error:
        pass
    known = ", ".join(_known(run))
    raise InputError(f"{device}: does not run in {run}; allowed: a device that runs, of {known}")


def _duration(event: Kind, seconds: float | None) -> dict[str, float]:
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
    if event is Kind.LEAVE:
        gone = [device for device in devices if not known[device].live]
        if gone:
            project.deliver_leaves(gone)
        devices = [device for device in devices if device not in gone]
    chosen = [known[device] for device in devices]
    if event not in NOT_LOGGED:
        project.log_event(event, _subjects(event, devices))
    for container in chosen:
        _action(project, event)(container)
    if seconds is not None:
        time.sleep(seconds)
        for container in chosen:
            _action(project, Kind.RESUME if event is Kind.STALL else Kind.HEAL)(container)


def _subjects(event: Kind, devices: list[str]) -> list[str]:
    """The devices as the log names them. A partition has one line, in which each device is its own group."""
    return {Kind.PARTITION: [" | ".join(devices)], Kind.HEAL: [""]}.get(event, devices)


def _action(project: Project, event: Kind) -> Callable[[Container], None]:
    """The docker command for an event."""
    if event in SIGNALS:
        return lambda container: project.signal(container, SIGNALS[event])
    return {
        Kind.STALL: project.pause,
        Kind.RESUME: project.unpause,
        Kind.RETURN: project.start,
        Kind.PARTITION: project.disconnect,
        Kind.HEAL: project.connect,
    }[event]


# -- pods ------------------------------------------------------------------------------------------------


def _pods(cluster: Devices, event: Kind, devices: list[str], seconds: float | None) -> None:
    """An event for pods of a Job. A device of the Job has the number of its index as its id."""
    if event in (Kind.PARTITION, Kind.HEAL):
        raise InputError(f"{event}: not to pods; allowed: {', '.join(PROCESS_SIGNALS)}, join, return")
    if event is Kind.JOIN:
        cluster.join(devices)
        return
    pods = cluster.pods()
    for device in devices:
        if device not in pods:
            raise InputError(f"{device}: not in {cluster.namespace}; allowed: {', '.join(sorted(pods))}")
    for device in devices:
        if event is Kind.RETURN:
            cluster.bring_back(device, pods[device])
        else:
            cluster.churn(_pod_for(event, device, pods), event, device)
    if seconds is not None:
        time.sleep(seconds)
        for device in devices:
            cluster.churn(pods[device], Kind.RESUME, device)


def _pod_for(event: Kind, device: str, pods: Mapping[str, Pod]) -> Pod:
    """The pod in which the event happens: the device's own, or for a leave of one that has ended, another."""
    if pods[device].runs:
        return pods[device]
    running = next((pod for pod in pods.values() if pod.runs), None)
    if event is not Kind.LEAVE or running is None:
        raise InputError(f"{device}: its pod {pods[device].name} is {pods[device].phase}; allowed: Running")
    return running
