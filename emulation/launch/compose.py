"""The backend `compose`: each device is a container; containers share the run's folder."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rich.console import Console

from emulation.analysis.records import failure, no_exception, read_lines
from emulation.launch import compose_project
from emulation.launch.backend import SignalKind
from emulation.launch.errors import RunFailed
from emulation.launch.run_state import KILLED, DeviceStatus, RunState
from emulation.testbed import docker, epoch, id_leases, run_folder, start_gate
from emulation.testbed.docker import Container, DockerFailed, Project
from peers.errors import LEAVE_UNCONFIRMED, InputError
from peers.runtime import partition
from peers.runtime.external_events import END_SIGNAL

SIGNALS = {**docker.SIGNALS, "partition": partition.SIGNAL.name, "end": END_SIGNAL.name}


@contextmanager
def _docker_errors_fail_the_run() -> Iterator[None]:
    try:
        yield
    except DockerFailed as error:
        raise RunFailed(str(error)) from None


@_docker_errors_fail_the_run()
def prepare(state: RunState, console: Console) -> ComposeBackend:
    """Build the image and make the run's folder ready.

    Raises InputError for virtual time or where docker-compose.yml is missing, RunFailed if the build fails.
    """
    scenario, out = state.scenario, state.out
    if scenario.clock == "virtual":
        raise InputError("--on compose: clock = 'virtual' is for processes of one launcher; allowed: 'real'")
    file = compose_project.compose_file()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        secret = stack.enter_context(TemporaryDirectory(prefix="unweft-keys-"))
        project = compose_project.make(scenario, out, file, Path(secret))
        if compose_project.can_build(file):
            console.print("building the image (the first time it takes minutes) …")
            project.compose("build", "device")
        project = compose_project.with_subnet(project)
        run_folder.begin(out, scenario, secrets.token_hex(8))
        cleanup = stack.pop_all()
    state.epoch_ns = epoch.read(out) or 0
    return ComposeBackend(state=state, project=project, console=console, cleanup=cleanup)


@dataclass(kw_only=True)
class ComposeBackend:
    """The containers of a run.

    A container starts early and waits at its gate, since its imports take seconds. A device that has no id
    yet is listed by the name of its container.
    """

    state: RunState
    project: Project
    console: Console
    cleanup: ExitStack = field(default_factory=ExitStack)
    earlier_exits: dict[str, tuple[int | None, ...]] = field(default_factory=dict)  # by device
    containers: dict[str, Container] = field(default_factory=dict)  # by device, as last seen
    poll_s: float = 0.5

    @_docker_errors_fail_the_run()
    def start_initial(self) -> None:
        """Start the initial devices, and those that join later, which wait at their gates."""
        scenario = self.state.scenario
        for device in scenario.initial_devices:
            start_gate.open_to(self.state.out, device)
        self.project.compose("up", "-d", "device")
        for device in scenario.all_devices[len(scenario.initial_devices) :]:
            self.project.join(device)

    def start(self, device: str) -> None:
        start_gate.open_to(self.state.out, device)

    @_docker_errors_fail_the_run()
    def signal(self, device: str, kind: SignalKind) -> None:
        container = self.containers[device]
        if kind == "stall":
            self.project.pause(container)
        elif kind == "resume":
            self.project.unpause(container)
        else:
            self.project.signal(container, SIGNALS[kind])

    @_docker_errors_fail_the_run()
    def running(self) -> dict[str, DeviceStatus]:
        self._find_containers()
        statuses = {device: self._status(device, found) for device, found in self.containers.items()}
        self._restart_returning_devices()
        return statuses

    @_docker_errors_fail_the_run()
    def end(self, succeeded: bool) -> dict[str, DeviceStatus]:
        try:
            self.project.compose("down", "-v", "--timeout", "1")
        finally:
            self.cleanup.close()
        if succeeded:
            print_memory(self.state.out, self.console)
        return dict(self.state.devices)

    def _find_containers(self) -> None:
        by_host = {container.id: container for container in self.project.containers()}
        claimed = id_leases.owners(self.state.out)
        owners = {device: by_host[host] for device, host in claimed.items() if host in by_host}
        with_id = {owner.id for owner in owners.values()}
        without_id = {c.name: c for c in by_host.values() if c.id not in with_id}
        self.containers = owners | without_id

    def _status(self, device: str, container: Container) -> DeviceStatus:
        at_gate = container.name != device and not start_gate.is_open(self.state.out, device)
        failed = self.state.failed(device, container.exit)
        return DeviceStatus(
            running=container.live and not at_gate,
            exits=(*self.earlier_exits.get(device, ()), container.exit),
            can_return=container.live and at_gate,
            failure=self._failure(device, container) if failed else "",
            record={"container": container.id},
        )

    def _failure(self, device: str, container: Container) -> str:
        recorded = failure(self.state.out / "devices" / device)
        return recorded or no_exception(self.project.docker("logs", "--tail", "1", container.id).strip())

    def _restart_returning_devices(self) -> None:
        """Start the containers of devices that return later. They wait at their gates."""
        return_later = {event.device for event in self.state.pending if event.kind == "return"}
        for device, container in self.containers.items():
            if device in return_later and container.exit in (0, LEAVE_UNCONFIRMED, *KILLED):
                start_gate.close_to(self.state.out, device)
                before = self.earlier_exits.get(device, ())
                self.earlier_exits[device] = (*before, container.exit)
                self.project.start(container)


def print_memory(out: Path, console: Console) -> None:
    """Print the peak memory of a device: the median and the maximum over devices."""
    lines = [line for path in (out / "devices").glob("*/events.jsonl") for line in read_lines(path)]
    peaks = [int(line["peak_rss_bytes"]) for line in lines if line["event"] == "finished"]
    if peaks:
        middle, most = median(peaks) / 1e6, max(peaks) / 1e6
        console.print(f"memory of a device: {middle:.0f} MB (median), {most:.0f} MB (most)", highlight=False)
