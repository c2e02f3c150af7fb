"""The sentences of a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emulation.analysis import summary
from emulation.report import text
from tests.support import synthetic_run


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    return summary.build(synthetic_run.write(tmp_path / "run"))


def test_stages_are_joined_by_arrows(found: dict[str, Any]) -> None:
    assert "its facts 90 % → 4 % at once → 5 % corrected → 5 % at the end" in text.sentences(found)[0]


@pytest.mark.parametrize(("groups", "start"), [("d0 | d1,d2", "d0 | d1,d2 were"), ("", "all devices were")])
def test_a_partition_has_a_subject(found: dict[str, Any], groups: str, start: str) -> None:
    found["events"][0] |= {"kind": "partition", "device": groups}
    assert text.sentences(found)[0].startswith(f"{start} cut off at round 4")
