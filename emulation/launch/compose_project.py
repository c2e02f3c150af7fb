"""The Docker Compose project of one run: compose files, keys, mounts, variables, image and network."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from emulation.launch import run_keys
from emulation.scenario import library
from emulation.scenario.schema import Scenario
from emulation.testbed import start_gate
from emulation.testbed.docker import Project, free_subnet
from peers.errors import InputError

COMPOSE_FILE = Path(__file__).with_name("docker-compose.yml")  # in the repository a link
FILE_VARIABLE, IMAGE_VARIABLE = "UNWEFT_COMPOSE_FILE", "UNWEFT_IMAGE"


def compose_file() -> Path:
    """The path of docker-compose.yml.

    Raises InputError if the file is missing, or if an image can neither be built nor is named.
    """
    file = Path(os.environ.get(FILE_VARIABLE, COMPOSE_FILE)).resolve()
    if not file.is_file():
        raise InputError(
            f"{FILE_VARIABLE}: {file} is not there; allowed: the repository's docker-compose.yml"
        )
    if not (can_build(file) or os.environ.get(IMAGE_VARIABLE)):
        raise InputError(
            f"{IMAGE_VARIABLE}: is not set, and {file.parent} has no Dockerfile to build an image from; "
            f"allowed: an image of unweft, or {FILE_VARIABLE} = the docker-compose.yml of a repository"
        )
    return file


def can_build(file: Path) -> bool:
    """Whether the image can be built. An installed package has the compose file, but no Dockerfile."""
    return (file.parent / "Dockerfile").is_file()


def make(scenario: Scenario, out: Path, file: Path, secret: Path) -> Project:
    """A project for a run that writes into `out`. `secret`: an empty folder that is deleted after the run."""
    run_keys.write(scenario, secret / "keys")
    files = (file, write_mounts(scenario, secret / "mounts.json"))
    return Project(_name(out), files, _variables(scenario, out, secret))


def _name(out: Path) -> str:
    """A lower-case name that no other run has."""
    return "unweft-" + re.sub(r"[^a-z0-9]+", "-", f"{out.name}-{os.getpid()}".lower()).strip("-")


def write_mounts(scenario: Scenario, file: Path) -> Path:
    """Write a second compose file, which mounts each path of the scenario under the same path."""
    named = (scenario.data.path, scenario.radio.trace, scenario.checkpoint.resume, scenario.model.name)
    paths = [Path(name).expanduser().absolute() for name in named if name and name != "tiny"]
    volumes = [
        {"type": "bind", "source": str(path), "target": str(path), "read_only": True}
        for path in paths
        if path.exists()
    ]
    file.write_text(json.dumps({"services": {"device": {"volumes": volumes}}}), encoding="utf-8")
    return file


def _variables(scenario: Scenario, out: Path, secret: Path) -> Mapping[str, str]:
    """The variables for docker-compose.yml. Containers run as this user, because they write into `out`."""
    return {
        "UNWEFT_DEVICES": str(scenario.devices.count),
        "UNWEFT_SCENARIO": "/results/scenario.toml",
        "UNWEFT_SCENARIOS": str(library.FOLDER.resolve()),
        "UNWEFT_SET": "",
        "UNWEFT_GATES": f"/results/{start_gate.FOLDER}",
        "UNWEFT_RESULTS": str(out.absolute()),
        "UNWEFT_KEYS_FROM": str(secret / "keys"),
        "UNWEFT_USER": f"{os.getuid()}:{os.getgid()}",
        "UNWEFT_LEAVE_GRACE_S": str(scenario.membership.leave_grace_s),
    }


def with_subnet(project: Project) -> Project:
    """The project with a free subnet, unless UNWEFT_SUBNET names one. Raises DockerFailed.

    Call this after the build: a build takes minutes, and other runs take subnets too.
    """
    if os.environ.get("UNWEFT_SUBNET"):
        return project
    subnet = free_subnet(project.execute)
    return replace(project, variables={**project.variables, "UNWEFT_SUBNET": subnet})
