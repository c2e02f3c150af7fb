"""A run says which of its devices never met."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from emulation.analysis.records import RunRecords
from emulation.analysis.summary import build
from emulation.analysis.unmet import nobody_met, separate_groups
from emulation.report.text import sentences
from tests.support import synthetic_run


def run(**known: list[str]) -> RunRecords:
    events: dict[str, list[dict[str, Any]]] = {
        device: [{"event": "unsettled", "known": [device]}] for device in known
    }
    metrics = {device: [{"members": members}] for device, members in known.items()}
    found = SimpleNamespace(devices=list(known), events=events, metrics=metrics)
    return cast(RunRecords, found)


def test_devices_that_know_each_other_over_a_third_one_have_met() -> None:
    assert separate_groups(run(d0=["d0", "d1"], d1=["d1"], d2=["d1", "d2"])) == []


def test_islands_are_listed_and_only_lone_devices_make_a_failure() -> None:
    islands = separate_groups(run(d0=["d0", "d1"], d1=["d0", "d1"], d2=["d2"]))
    assert islands == [["d0", "d1"], ["d2"]] and not nobody_met(islands)
    alone = separate_groups(run(d0=["d0"], d1=["d1"]))
    assert nobody_met(alone)
    assert not nobody_met(separate_groups(run(d0=["d0"])))


def test_the_summary_and_its_sentences_say_so(tmp_path: Path) -> None:
    synthetic_run.write(tmp_path / "run")
    found = build(tmp_path / "run")
    assert found["unmet"] == []
    found["unmet"] = [["d0"], ["d1"]]
    assert "no two devices ever met" in sentences(found)[0]
