"""The devices of a compose project, through the docker command line (docs/deploy.md)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from random import SystemRandom

from emulation.testbed.commands import run_to_end
from peers.errors import InputError
from peers.runtime import partition

Execute = Callable[[Sequence[str], Mapping[str, str]], "subprocess.CompletedProcess[str]"]
LABEL = "com.docker.compose"
DEVICE_SERVICES = ("device", "slow", "gpu")
TIMEOUT_S = 1800  # a first build takes minutes
SIGNALS = {"leave": "SIGTERM", "retire": "SIGINT", "crash": "SIGKILL"}


class DockerFailed(Exception):
    """A docker command failed. The message has the last line that docker printed."""


def execute(command: Sequence[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Raises InputError if docker is not installed."""
    try:
        return run_to_end(command, TIMEOUT_S, variables=variables)
    except FileNotFoundError:
        raise InputError("docker: not found; a compose project needs Docker with Compose v2") from None


def free_subnet(execute: Execute = execute) -> str:
    """A subnet 10.93.n.0/24 that no network of the engine uses.

    Raises DockerFailed if all are used.
    """
    taken = _subnets(Project("", execute=execute))
    numbers = SystemRandom().sample(range(1, 255), 254)  # random: other runs may choose at this moment
    for subnet in (IPv4Network(f"10.93.{number}.0/24") for number in numbers):
        if not any(subnet.version == other.version and subnet.overlaps(other) for other in taken):
            return str(subnet)
    raise DockerFailed("docker network: every subnet in 10.93.0.0/16 is taken")


def _subnets(engine: Project) -> list[IPv4Network | IPv6Network]:
    """The subnets of all networks. Raises DockerFailed."""
    form, found = "{{range .IPAM.Config}}{{.Subnet}} {{end}}", list[IPv4Network | IPv6Network]()
    for network in engine.docker("network", "ls", "--quiet").split():
        try:
            told = engine.docker("network", "inspect", "--format", form, network).split()
        except DockerFailed:  # the network was removed in the meantime
            continue
        for subnet in told:
            with suppress(ValueError):  # the network has no subnet
                found.append(ip_network(subnet, strict=False))
    return found


@dataclass(frozen=True, slots=True)
class Container:
    """The container of one device."""

    id: str  # 12 characters: the hostname inside the container
    name: str
    state: str  # running, paused, exited, created, ...
    exit: int | None  # exit status; None while the container has not ended

    @property
    def live(self) -> bool:
        return self.state in ("running", "paused")


@dataclass(frozen=True)
class Project:
    """A compose project by name.

    `files`, `variables`: compose files and environment of its start, needed to start more containers.
    """

    name: str
    files: tuple[Path, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    execute: Execute = field(default=execute, repr=False)

    def docker(self, *arguments: str) -> str:
        """Run a docker command; returns what it prints. Raises DockerFailed."""
        done = self.execute(["docker", *arguments], self.variables)
        if done.returncode:
            said = done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["it said nothing"]
            raise DockerFailed(f"docker {' '.join(arguments[:3])} …: {said[-1]}")
        return done.stdout

    def compose(self, *arguments: str) -> str:
        """Run a `docker compose` command on this project. Raises DockerFailed."""
        named = [word for file in self.files for word in ("-f", str(file))]
        return self.docker("compose", "-p", self.name, *named, *arguments)

    # -- containers --------------------------------------------------------------------------------
    def containers(self) -> list[Container]:
        """The containers of all devices, with those that have ended."""
        ids = [line for service in DEVICE_SERVICES for line in self._ids(service)]
        if not ids:
            return []
        found = [_container(about) for about in json.loads(self.docker("inspect", *ids))]
        return sorted(found, key=lambda container: container.name)

    def devices(self) -> dict[str, Container]:
        """The container of each device, by the id that the device claimed.

        Raises InputError if no container of the project runs.
        """
        containers = self.containers()
        running = [c for c in containers if c.state == "running"]
        if not running:
            raise InputError(
                f"{self.name}: no device of this project runs; allowed: a folder of `unweft run`, or one of "
                "`docker compose ls`"
            )
        claimed = json.loads(
            self.docker("exec", running[0].id, "python", "-m", "emulation.testbed.id_leases")
        )
        by_host = {container.id: container for container in containers}
        return {device: by_host[host] for device, host in claimed.items() if host in by_host}

    def _ids(self, service: str) -> list[str]:
        wanted = (f"{LABEL}.project={self.name}", f"{LABEL}.service={service}")
        filters = [word for label in wanted for word in ("--filter", f"label={label}")]
        return self.docker("ps", "-aq", *filters).split()

    # -- events ------------------------------------------------------------------------------------
    def signal(self, container: Container, name: str) -> None:
        """Send a signal, such as SIGTERM, to a container."""
        self.docker("kill", "--signal", name, container.id)

    def pause(self, container: Container) -> None:
        self.docker("pause", container.id)

    def unpause(self, container: Container) -> None:
        self.docker("unpause", container.id)

    def start(self, container: Container) -> None:
        """Start a container that has ended. The device has the same id if its identity was kept."""
        self.docker("start", container.id)

    def join(self, device: str) -> None:
        """Add a container to the service, for a device with this id.

        The container is created, then started: `up --scale` would also start containers that have ended.
        """
        before = {container.id for container in self.containers()}
        named = replace(self, variables={**self.variables, "UNWEFT_ID": device})
        scale = ("--scale", f"device={1 + len(self._ids('device'))}")
        named.compose("create", "--no-recreate", "--no-build", *scale, "device")
        for container in self.containers():
            if container.id not in before:
                self.start(container)

    def network(self) -> str:
        """The name of the devices' network."""
        label = f"label={LABEL}.project={self.name}"
        return self.docker("network", "ls", "--filter", label, "--format", "{{.Name}}").split()[0]

    def disconnect(self, container: Container) -> None:
        """Take a container out of the devices' network."""
        self.docker("network", "disconnect", self.network(), container.id)

    def connect(self, container: Container) -> None:
        """Put a container back into the network, under the address that other devices know."""
        said = json.loads(self.docker("exec", container.id, "python", "-m", "peers.runtime.health", "--json"))
        address = str(said["address"]).removeprefix("tcp://").rpartition(":")[0]
        names = ("--alias", "device", "--ip", address)
        self.docker("network", "connect", *names, self.network(), container.id)

    def deliver_leaves(self, gone: Sequence[str]) -> None:
        """Deliver the leaves of devices that have ended, which nobody has confirmed, to those that run.

        Raises DockerFailed with the message of `leave_delivery` if a device has no such leave.
        """
        running = [container for container in self.containers() if container.state == "running"]
        if running:
            self.docker("exec", running[0].id, "python", "-m", "emulation.testbed.leave_delivery", *gone)
        for container in running:
            self.signal(container, partition.SIGNAL.name)

    def log_event(self, kind: str, devices: Sequence[str]) -> None:
        """Log an event that is about to happen, in the run's folder (churn_log)."""
        running = next((c for c in self.containers() if c.state == "running"), None)
        if running is not None:
            self.docker("exec", running.id, "python", "-m", "emulation.testbed.churn_log", kind, *devices)


def _container(about: dict[str, object]) -> Container:
    state = about["State"]
    assert isinstance(state, dict)
    live = state["Status"] in ("running", "paused", "created")
    return Container(
        str(about["Id"])[:12],
        str(about["Name"]).lstrip("/"),
        state["Status"],
        None if live else state["ExitCode"],
    )
