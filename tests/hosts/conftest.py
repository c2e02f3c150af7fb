"""Tests with several hosts. They start devices, so they run only on request (make test-hosts)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import hosts

ASKED = "UNWEFT_HOSTS"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    if not ours:
        return
    reason = hosts.missing() if os.environ.get(ASKED) else "tests with hosts run with: make test-hosts"
    for item in ours:
        item.add_marker(pytest.mark.timeout(400))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
