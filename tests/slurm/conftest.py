"""Tests with a Slurm cluster. They start daemons, so they run only on request (make test-slurm)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import slurm_cluster
from tests.support.slurm_cluster import Cluster

ASKED = "UNWEFT_SLURM"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    if not ours:
        return
    reason = (
        slurm_cluster.missing() if os.environ.get(ASKED) else "tests with Slurm run with: make test-slurm"
    )
    for item in ours:
        item.add_marker(pytest.mark.timeout(400))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with slurm_cluster.cluster(nodes=3) as found:
        yield found
