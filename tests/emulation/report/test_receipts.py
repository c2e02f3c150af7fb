"""The receipt of a deletion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emulation.analysis import records, summary
from emulation.report import html
from emulation.report.receipts import Receipt, meaning, receipts
from tests.support import synthetic_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return synthetic_run.with_deletions(synthetic_run.write(tmp_path / "run"))


def receipt(folder: Path, **changed: Any) -> Receipt:
    found = summary.build(folder)
    found["events"][0] |= changed
    return receipts(records.load(folder), found)[0]


def test_it_says_who_when_and_by_whom(folder: Path) -> None:
    found = receipt(folder)
    assert found.title == "d2, forgotten after round 4" and found.blocks == "d2@0"
    assert "At 5.5 s d2 left and asked to be forgotten" in found.why
    assert found.hashes.rows == [
        ("d0", "0.50", "5", "d0-before", "d0-after"),
        ("d1", "0.50", "5", "d1-before", "d1-after"),
    ]


def test_the_knowledge_stands_beside_facts_that_nobody_trained(folder: Path) -> None:
    """The accuracies of synthetic_run.evaluations."""
    assert receipt(folder).knowledge.rows == [
        ("before the deletion", "90 %", "5 %", "98 %"),
        ("right after it", "4 %", "5 %", "10 %"),
        ("after the correction", "5 %", "5 %", "100 %"),
        ("at the end", "5 %", "5 %", "100 %"),
    ]
    assert "not measured" in receipt(folder).knowledge.caption


def test_membership_inference_is_shown_if_the_run_measured_it(folder: Path) -> None:
    measured = {"mia_loss": {"device": {"before": 0.97, "end": 0.5}, "survivors": {"end": 0.9}}}
    knowledge = receipt(folder, metrics=measured).knowledge
    assert knowledge.heads[-1] == "membership inference (loss)"
    assert [row[-1] for row in knowledge.rows] == ["0.97", "–", "–", "0.50"]


def test_a_residual_at_chance_and_one_above_it(folder: Path) -> None:
    event = summary.build(folder)["events"][0]
    assert meaning(event).startswith("Residual: +0 percentage points") and "guessing can" in meaning(event)
    event["leaver_accuracy"]["end"] = 0.55
    assert meaning(event).startswith(
        "Residual: +50 percentage points relative to facts that nobody trained, +85 "
    )
    assert "leaked" in meaning(event)
    event["control_accuracy"]["end"] = None
    assert "unknown" in meaning(event)


def test_files_that_still_hold_the_block_are_named(folder: Path) -> None:
    assert "None of the 0 saved files of the run holds the block." in receipt(folder).files
    found = summary.build(folder)
    found["forgotten"]["holding"] = ["adapters/d1"]
    assert "adapters/d1" in receipts(records.load(folder), found)[0].files


def test_a_join_and_an_event_without_deletion_have_no_receipt(folder: Path) -> None:
    assert len(receipts(records.load(folder), summary.build(folder))) == 1


def test_the_page_has_the_receipt(folder: Path) -> None:
    text = html.write(folder).read_text()
    assert 'id="forgotten"' in text and "d1-after" in text
