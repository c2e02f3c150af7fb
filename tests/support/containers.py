"""A testbed in containers, started by docker compose with this repository's file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emulation.testbed.docker import Container, DockerFailed, Project, free_subnet

ROOT = Path(__file__).parents[2]
IMAGE = "unweft:test"
PATIENCE_S = 240.0  # devices import torch, on a machine that may be loaded
SMALL = "round.count=5000 round.local_steps=1 data.persons=2 data.batch=8 adapter.rank=4 correction.rounds=3"
Status = dict[str, Any]


def build() -> None:
    """Build the image. This takes seconds if only the code has changed, and minutes the first time."""
    Project("unweft-test-image", _files(), {"UNWEFT_IMAGE": IMAGE}).compose("build", "device")


def _files() -> tuple[Path, ...]:
    return (ROOT / "docker-compose.yml",)


def until(true: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until `true()`; fails with `what` after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.5)


class Bed:
    """One compose project."""

    def __init__(self, name: str, **variables: str) -> None:
        given = {"UNWEFT_IMAGE": IMAGE, "UNWEFT_SUBNET": free_subnet(), "UNWEFT_SET": SMALL, **variables}
        self.name, self.project = name, Project(name, _files(), given)
        self.dangling_before = self.dangling()

    # -- commands of a user ------------------------------------------------------------------------
    def up(self, devices: int) -> None:
        """Run docker compose up and wait until all devices have mixed once."""
        more = {**self.project.variables, "UNWEFT_DEVICES": str(devices)}
        self.project = Project(self.name, self.project.files, more)
        self.project.compose("up", "-d", "--no-build")
        until(lambda: len(self.statuses()) == devices, f"{devices} devices that answer")
        self.until_round(1)

    def scale(self, devices: int) -> None:
        arguments = ("up", "-d", "--no-build", "--no-deps", "--scale", f"device={devices}", "device")
        self.project.compose(*arguments)

    def down(self, *options: str) -> None:
        self.project.compose("--profile", "*", "down", *options)

    def docker(self, *arguments: str) -> str:
        return self.project.docker(*arguments)

    def dangling(self) -> set[str]:
        """Volumes that no container uses."""
        return set(self.docker("volume", "ls", "-q", "--filter", "dangling=true").split())

    # -- observations ------------------------------------------------------------------------------
    def containers(self) -> dict[str, Container]:
        """The container of each device."""
        return self.project.devices()

    def status(self, device: str) -> Status:
        """The status that a device reports. Raises DockerFailed if it does not answer."""
        return self.ask(self.containers()[device])

    def ask(self, container: Container) -> Status:
        said = self.docker("exec", container.id, "python", "-m", "peers.runtime.health", "--json")
        return dict(json.loads(said))

    def statuses(self) -> dict[str, Status]:
        """The status of each device that runs and answers."""
        found = {}
        for container in self.project.containers():
            if container.state == "running":
                try:
                    status = self.ask(container)
                except DockerFailed:
                    continue
                found[str(status["id"])] = status
        return found

    def round(self) -> int:
        """The last round of the slowest device."""
        return min((int(status["round"]) for status in self.statuses().values()), default=-1)

    def until_round(self, number: int) -> None:
        until(lambda: self.round() >= number, f"round {number} everywhere")

    def agreed(self, *members: str) -> bool:
        """Whether exactly these devices run, and each has exactly these as members."""
        found = self.statuses()
        if sorted(found) != sorted(members):
            return False
        views = {(tuple(s["members"]), tuple(s["blocks"]), s["view"]) for s in found.values()}
        return len(views) == 1 and next(iter(views))[0] == tuple(sorted(members))

    def until_agreed(self, *members: str) -> None:
        until(lambda: self.agreed(*members), f"{members} agree; they say {self._brief()}")

    def _brief(self) -> dict[str, Any]:
        return {name: (s["round"], s["members"], s["blocks"]) for name, s in self.statuses().items()}

    def read(self, path: str) -> str:
        """The text of a file in the results."""
        mount = f"{self.name}_results:/results:ro"
        options = ("--rm", "--network", "none", "-v", mount, "--entrypoint", "cat")
        return self.docker("run", *options, IMAGE, f"/results/{path}")

    def lines(self, device: str, name: str = "events") -> list[dict[str, Any]]:
        """The records of a device."""
        text = self.read(f"devices/{device}/{name}.jsonl")
        return [json.loads(line) for line in text.splitlines()]

    def events(self, device: str, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines(device) if line["event"] == kind]
