"""Bytes of copies of blocks that were deleted soon after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emulation.analysis.records import RunRecords
from emulation.analysis.wasted_copies import copy_bytes, deletions, wasted_bytes
from emulation.scenario.schema import Scenario


def deleted(peer: str, round_: int, incarnation: int = 0) -> dict[str, Any]:
    return {"event": "deleted", "round": round_, "peer": peer, "incarnation": incarnation}


def records() -> RunRecords:
    sent = [{"round": r, "block_bytes": {"d0@0": 1, "d2@0": 10, "d2@1": 100}} for r in range(10)]
    events = {"d0": [deleted("d2", 7), {"event": "training", "round": 0}], "d1": [deleted("d2", 6)]}
    return RunRecords(Path(), Scenario(), ["d0", "d1"], {"d0": sent, "d1": [{"round": 9}]}, events)


def test_a_block_is_deleted_when_the_first_device_deletes_it() -> None:
    assert deletions(records()) == {"d2@0": 6}


def test_only_copies_of_the_last_rounds_before_a_deletion_are_wasted() -> None:
    assert copy_bytes(records()) == 1110
    assert wasted_bytes(records(), 2) == 50  # rounds 5 and 6, and 7 to 9 after the deletion
    assert wasted_bytes(records(), 100) == 100
