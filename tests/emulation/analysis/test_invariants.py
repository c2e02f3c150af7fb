"""Each broken invariant is reported, and a correct run has no violation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emulation.analysis.invariants import Bounds, check
from tests.support import synthetic_run

LIVE = ("d0", "d1", "d3")
Lines = list[dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run of synthetic_run, with adapters."""
    folder = synthetic_run.write(tmp_path / "run")
    for device in LIVE:
        write_blocks(folder, device, {d: int(d[1:]) for d in LIVE})
    return folder


def write_blocks(run: Path, device: str, slots: dict[str, int]) -> None:
    blocks = [{"device": d, "incarnation": 0, "slot": slot} for d, slot in slots.items()]
    file = run / "adapters" / device / "unweft.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"blocks": blocks}))


def change(run: Path, device: str, name: str, edit: Callable[[Lines], Lines]) -> None:
    file = run / "devices" / device / name
    lines = edit([json.loads(line) for line in file.read_text().splitlines()])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def verdicts(run: Path, bounds: Bounds | None = None) -> list[str]:
    return [str(violation) for violation in check(run, bounds or Bounds(agree_s=3.0, round_s=3.0))]


def test_a_correct_run_has_no_violation(run: Path) -> None:
    assert verdicts(run) == []


def test_a_forgotten_block_in_the_metrics(run: Path) -> None:
    def edit(lines: Lines) -> Lines:
        lines[-1]["norms"]["d2@0"] = {"early": 0.1}
        return lines

    change(run, "d1", "metrics.jsonl", edit)
    assert verdicts(run) == ["a forgotten block is held: d2@0 on d1 in round 9"]


def test_a_forgotten_block_in_an_adapter(run: Path) -> None:
    write_blocks(run, "d1", {"d0": 0, "d1": 1, "d2": 2, "d3": 3})
    assert "a forgotten block is held: d2@0 in the adapter of d1" in verdicts(run)


def test_a_forgotten_block_after_an_undetected_leave(run: Path) -> None:
    write_blocks(run, "d1", {"d0": 0, "d1": 1, "d2": 2, "d3": 3})
    for device in LIVE:
        change(run, device, "events.jsonl", lambda lines: [e for e in lines if e["event"] != "peer_gone"])
    leaving = {"t_s": 5.0, "round": 5, "event": "leaving", "kind": "leave"}
    change(run, "d2", "events.jsonl", lambda lines: [*lines, leaving])
    assert "a forgotten block is held: d2@0 in the adapter of d1" in verdicts(run)


def test_an_undetected_end(run: Path) -> None:
    change(run, "d0", "events.jsonl", lambda lines: [e for e in lines if e["event"] != "peer_gone"])
    assert verdicts(run) == ["an end is not noticed in time: of d2 by d0, 3 s"]


def test_an_early_return_replaces_the_detection_of_the_end(run: Path) -> None:
    change(run, "d0", "events.jsonl", lambda lines: [e for e in lines if e["event"] != "peer_gone"])
    record = json.loads((run / "run.json").read_text())
    record["events"].append({"round": 4, "kind": "return", "device": "d2", "t_s": synthetic_run.LEFT_S + 1})
    (run / "run.json").write_text(json.dumps(record))
    assert not any("not noticed" in v for v in verdicts(run))


def test_devices_that_disagree_and_a_slot_held_twice(run: Path) -> None:
    write_blocks(run, "d3", {"d0": 0, "d1": 3, "d3": 3})
    found = verdicts(run)
    assert any(v.startswith("devices end with different blocks: d3") for v in found)
    assert "a slot is held twice: [3] on d3" in found


def test_a_newcomer_just_before_the_end_may_be_unknown(run: Path) -> None:
    write_blocks(run, "d1", {"d0": 0, "d1": 1})  # without d3, which joined at 8.5 s
    ends = lambda lines: [{**e, "reason": "finished"} for e in lines]  # noqa: E731
    for device in LIVE:
        change(run, device, "events.jsonl", ends)
    late, early = Bounds(agree_s=4.0, round_s=3.0), Bounds(agree_s=2.0, round_s=3.0)
    assert not any("different blocks" in v for v in verdicts(run, late))
    assert any("different blocks" in v for v in verdicts(run, early))


def test_a_device_without_rounds_for_too_long(run: Path) -> None:
    change(run, "d0", "metrics.jsonl", lambda lines: [m for m in lines if m["round"] not in (5, 6, 7)])
    assert verdicts(run) == ["a device stands still: d0 for 4.0 s after round 4"]


def test_link_counters_that_do_not_balance(run: Path) -> None:
    def edit(lines: Lines) -> Lines:
        lines[-1]["links"]["d0"]["received_bytes"] -= 5
        return lines

    change(run, "d1", "events.jsonl", edit)
    assert verdicts(run) == ["sent != received + dropped: d0 -> d1: 5"]


def test_a_temporary_file(run: Path) -> None:
    (run / "devices" / "d0" / "x.tmp").touch()
    assert verdicts(run) == ["a temporary file is left: devices/d0/x.tmp"]


def test_beside_hostile_members_only_links_of_devices_that_waited_for_all_must_balance(run: Path) -> None:
    def ends_with(reason: str) -> Callable[[Lines], Lines]:
        def edit(lines: Lines) -> Lines:
            lines[-1]["links"]["d0"]["received_bytes"] = lines[-1]["links"]["d0"]["received_bytes"] - 5
            return [*lines[:-1], {**lines[-1], "reason": reason}]

        return edit

    finished = lambda lines: [*lines[:-1], {**lines[-1], "reason": "finished"}]  # noqa: E731
    change(run, "d0", "events.jsonl", finished)
    change(run, "d1", "events.jsonl", ends_with("finished; not all others said goodbye"))
    bounds = Bounds(agree_s=3.0, round_s=3.0)
    beside = frozenset({"d3"})
    assert check(run, bounds, hostile=beside) == []
    change(run, "d1", "events.jsonl", finished)
    assert [v.where for v in check(run, bounds, hostile=beside)] == ["d0 -> d1: 5"]
