"""The sentences of a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emulation.analysis import summary
from emulation.report import report_tables, text
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


def test_latencies_between_hosts_are_labelled_with_the_difference_of_their_clocks(
    found: dict[str, Any],
) -> None:
    assert not any("clocks" in sentence for sentence in text.sentences(found))
    found["links"][0]["clock_s"] = {"difference": -0.2004, "error": 0.0006}
    found["links"][1]["clock_s"] = {"difference": 0.0001, "error": 0.0004}
    said = "latencies hold the difference of two clocks: at most 200.4 ms, measured to ±0.6 ms"
    assert said in text.sentences(found)
    table = report_tables.links(found)
    assert "clocks, ms" in table.heads and "-200.4 ± 0.6" in table.rows[0]
