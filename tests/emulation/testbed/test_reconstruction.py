"""The records of a run without a launcher, reconstructed from the records of its devices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from emulation.analysis import evaluator, records, summary
from emulation.testbed import churn_log, epoch, reconstruction
from tests.support.synthetic_run import JOINED_S, LEFT_S, write

EPOCH_NS = 5_000_000_000


def started_one_by_one(folder: Path) -> Path:
    """The synthetic run as containers leave it: d2 left at 4, d3 joined at 7, but no launcher recorded it."""
    run = write(folder)
    (run / "run.json").unlink()
    (run / epoch.FILE).write_text(json.dumps({"epoch_ns": EPOCH_NS, "boot_id": epoch.boot_id()}))
    append(run, "d2", {"t_s": LEFT_S, "round": 4, "event": "leaving", "kind": "leave"})
    edit(run, "d3", lambda e: {**e, "t_s": JOINED_S} if e["event"] in ("started", "slot") else e)
    for device in ("d0", "d1", "d3"):
        append(run, device, {"t_s": 10.95, "round": 9, "event": "finished"})
    return run


def append(run: Path, device: str, *events: dict[str, Any]) -> None:
    with (run / "devices" / device / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def edit(run: Path, device: str, change: Any) -> None:
    path = run / "devices" / device / "events.jsonl"
    lines = [json.dumps(change(json.loads(line))) for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")


def happened(run: Path) -> list[tuple[str, str, int, float]]:
    found = reconstruction.find_events(records.load(run))
    return [(e["kind"], e["device"], e["round"], e["t_s"]) for e in found]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return started_one_by_one(tmp_path / "run")


def test_leaves_and_joins_are_those_that_a_launcher_would_record(run: Path) -> None:
    assert happened(run) == [("leave", "d2", 4, LEFT_S), ("join", "d3", 7, JOINED_S)]


def test_the_summary_has_the_same_events_as_with_a_launcher(run: Path, tmp_path: Path) -> None:
    launched = summary.build(write(tmp_path / "launched"))
    reconstruction.complete(run)
    assert summary.build(run)["events"] == launched["events"]


def test_a_silent_device_whose_crash_was_detected_has_crashed(run: Path) -> None:
    edit(run, "d1", lambda e: {**e, "event": "nothing"} if e["event"] == "finished" else e)
    last = max(float(line["t1_s"]) for line in records.load(run).metrics["d1"])
    gone = {"t_s": 11.5, "round": 9, "event": "peer_gone", "peer": "d1", "incarnation": 0, "kind": "crash"}
    append(run, "d0", gone)
    (crash,) = [e for e in happened(run) if e[0] == "crash"]
    assert crash[1] == "d1" and crash[3] >= last


def test_a_device_that_still_works_has_not_crashed(run: Path) -> None:
    edit(run, "d1", lambda e: {**e, "event": "nothing"} if e["event"] == "finished" else e)
    assert [e[0] for e in happened(run)] == ["leave", "join"]


def test_a_false_detection_is_no_crash(run: Path) -> None:
    edit(run, "d1", lambda e: {**e, "event": "nothing"} if e["event"] == "finished" else e)
    gone = {"t_s": 6.0, "round": 5, "event": "peer_gone", "peer": "d1", "incarnation": 0, "kind": "crash"}
    append(run, "d0", gone)
    assert [e[0] for e in happened(run)] == ["leave", "join"]


def test_a_device_that_started_again_has_returned(run: Path) -> None:
    append(
        run,
        "d2",
        {"t_s": 7.2, "round": -1, "event": "started", "pid": 7},
        {"t_s": 10.9, "round": 9, "event": "finished"},
    )
    assert ("return", "d2", 6, 7.2) in happened(run)


def test_an_absent_device_holds_back_no_round(run: Path) -> None:
    """d2 closed round 4 before it left; when d3 joins, d2's next life has not begun."""
    append(
        run,
        "d2",
        {"t_s": 9.2, "round": -1, "event": "started", "pid": 7},
        {"t_s": 10.9, "round": 9, "event": "finished"},
    )
    assert ("join", "d3", 7, JOINED_S) in happened(run)


def test_a_logged_event_replaces_the_recorded_one(run: Path) -> None:
    note = {"kind": "leave", "device": "d2", "monotonic_ns": EPOCH_NS + int((LEFT_S - 0.3) * 1e9)}
    stall = {"kind": "stall", "device": "d1", "monotonic_ns": EPOCH_NS + 2_500_000_000, "duration_s": 1.0}
    (run / churn_log.FILE).write_text(json.dumps(note) + "\n" + json.dumps(stall) + "\n")
    assert [e[:2] for e in happened(run)] == [("stall", "d1"), ("leave", "d2"), ("join", "d3")]
    assert happened(run)[1][3] == pytest.approx(LEFT_S - 0.3)


def test_the_scenario_gets_the_events_that_happened_and_can_be_run_again(run: Path) -> None:
    shutil.copy(run / "scenario.toml", run / "asked.toml")
    reconstruction.complete(run)
    scenario = records.load(run).scenario
    assert [(e.kind, e.device, e.round) for e in scenario.event] == [("leave", "d2", 4), ("join", "d3", 7)]
    assert scenario.all_devices == ("d0", "d1", "d2", "d3")


def test_a_partition_is_written_as_in_a_scenario(run: Path) -> None:
    notes = [("partition", "d0 | d1", 1), ("heal", "", 2)]
    lines = [{"kind": k, "device": d, "monotonic_ns": EPOCH_NS + s * 10**9} for k, d, s in notes]
    (run / churn_log.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    reconstruction.complete(run)
    partition, heal = records.load(run).scenario.event[:2]
    assert partition.groups == (("d0",), ("d1",)) and partition.device is None
    assert (heal.kind, heal.device) == ("heal", None)


def test_records_are_reconstructed_each_time(run: Path) -> None:
    reconstruction.complete(run)
    append(run, "d3", {"t_s": 10.96, "round": 9, "event": "leaving", "kind": "retire"})
    reconstruction.complete(run)
    assert [e["kind"] for e in records.load(run).injected] == ["leave", "join", "retire"]


def test_remaining_snapshots_are_evaluated(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, tuple[str, ...]]] = []

    def evaluate(folder: Path, scenario: Any) -> None:
        seen.append(((folder / evaluator.DONE_MARKER).exists(), scenario.all_devices))

    monkeypatch.setattr(evaluator, "main", evaluate)
    reconstruction.complete(run)
    assert not seen  # there were none
    (run / "devices" / "d0" / "snapshots").mkdir()
    (run / "devices" / "d0" / "snapshots" / "00009-end.safetensors").touch()
    reconstruction.complete(run)
    assert seen == [(True, ("d0", "d1", "d2", "d3"))]  # with the device that joined
    assert not (run / evaluator.DONE_MARKER).exists()


def test_the_run_of_a_launcher_stays_as_it_is(tmp_path: Path) -> None:
    run = write(tmp_path / "run")
    before = (run / "run.json").read_text()
    reconstruction.complete(run)
    assert (run / "run.json").read_text() == before


def test_events_of_churn_are_added_to_the_run_of_a_launcher_once(tmp_path: Path) -> None:
    run = write(tmp_path / "run")
    churn_log.log_event(run, "stall", ["d1"], duration_s=2.0)
    for _ in range(2):
        reconstruction.complete(run)
        found = records.load(run).injected
        assert [e["kind"] for e in found] == ["leave", "join", "stall"]
        assert found[2]["duration_s"] == 2.0 and "round" in found[2]


def test_an_event_that_was_logged_on_another_host_counts_by_the_wall_clock(run: Path) -> None:
    """Hosts count monotonic time each from its own boot."""
    started = {"epoch_ns": EPOCH_NS, "boot_id": "here", "unix_ns": 10**18}
    (run / epoch.FILE).write_text(json.dumps(started))
    here = {"kind": "stall", "device": "d0", "monotonic_ns": EPOCH_NS + 3 * 10**9, "boot_id": "here"}
    there = {
        "kind": "stall",
        "device": "d1",
        "monotonic_ns": 7,
        "unix_ns": 10**18 + 4 * 10**9,
        "boot_id": "there",
    }
    (run / churn_log.FILE).write_text(f"{json.dumps(here)}\n{json.dumps(there)}\n")
    assert [(e["device"], e["t_s"]) for e in churn_log.read(run, 0)] == [("d0", 3.0), ("d1", 4.0)]


def test_events_of_churn_are_added_to_a_launchers_run_on_a_cluster(tmp_path: Path) -> None:
    run = write(tmp_path / "run")
    epoch.write(run)
    record = json.loads((run / "run.json").read_text()) | {"epoch_ns": epoch.read(run)}
    (run / "run.json").write_text(json.dumps(record))
    churn_log.log_event(run, "stall", ["d1"], duration_s=2.0)
    reconstruction.complete(run)
    events = json.loads((run / "run.json").read_text())["events"]
    assert ("stall", "d1") in [(e["kind"], e["device"]) for e in events]
