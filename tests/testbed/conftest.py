"""Container tests. They need a Docker engine and minutes, so they run only on request (make testbed)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containers import IMAGE, Bed, build

ASKED = "UNWEFT_TESTBED"
HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "container: needs a Docker engine; make testbed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    reason = _missing() if ours else None
    for item in ours:
        item.add_marker(pytest.mark.container)
        item.add_marker(pytest.mark.timeout(600))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


def _missing() -> str | None:
    """The reason why container tests cannot run here; None if they can."""
    if not os.environ.get(ASKED):
        return "container tests run with: make testbed"
    command = ["docker", "info", "--format", "{{.ServerVersion}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return "no Docker engine: there is no docker command"
    said = done.stderr.strip().splitlines() or ["it said nothing"]
    return f"no Docker engine answers: {said[-1]}" if done.returncode else None


@pytest.fixture(scope="session")
def image() -> str:
    """An image with the code of the working tree."""
    build()
    return IMAGE


@pytest.fixture(scope="session")
def bed(image: str) -> Iterator[Bed]:
    """A testbed of four devices that have trained a round together. Tests of test_testbed.py end it."""
    bed = Bed(f"unweft-test-{os.getpid()}")
    try:
        bed.up(devices=4)
        yield bed
    finally:
        bed.down("-v")
