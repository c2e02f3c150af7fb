"""The state of a run, rebuilt from its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emulation.testbed import churn_log, epoch
from emulation.watch.feed import Announcer
from emulation.watch.live_run import EvaluatorLag, LiveRun
from emulation.watch.page_state import Cursor, update
from emulation.watch.spans import of_round
from tests.support import synthetic_run
from tests.support.watched import append, event, injected, reopen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = synthetic_run.write(tmp_path / "run")
    reopen(made)
    return made


def read(folder: Path) -> LiveRun:
    run = LiveRun(folder)
    run.read()
    return run


def states(run: LiveRun) -> dict[str, str]:
    return {device: about.state for device, about in run.devices.items()}


def events_of(folder: Path, device: str) -> Path:
    return folder / "devices" / device / "events.jsonl"


def test_a_run_that_is_followed_and_one_that_is_read_late_have_the_same_state(tmp_path: Path) -> None:
    source, grown = synthetic_run.write(tmp_path / "run"), tmp_path / "grown"
    followed = LiveRun(grown)
    files = sorted(source.rglob("*.jsonl"))
    for path in [source / "scenario.toml", *files]:
        target = grown / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines(keepends=True):
            with target.open("a") as file:
                file.write(line[: len(line) // 2])
            if path.suffix == ".jsonl":
                followed.read()
            with target.open("a") as file:
                file.write(line[len(line) // 2 :])
    followed.read()
    late = read(grown)
    assert sorted(late.spans) == sorted(followed.spans)
    assert states(late) == states(followed) and late.evaluations == followed.evaluations
    assert sorted(e.sentence() for e in late.feed.entries) == sorted(
        e.sentence() for e in followed.feed.entries
    )


def test_a_leave_is_one_entry_and_the_deletions_are_another(folder: Path) -> None:
    append(folder / "injected.jsonl", injected(20.0, "leave", "d0"))
    append(events_of(folder, "d0"), event(20.1, "leaving", kind="leave"))
    for device in ("d1", "d3"):
        append(events_of(folder, device), event(20.3, "deleted", peer="d0", incarnation=0))
    run = read(folder)
    assert states(run)["d0"] == "left" and run.live() == ["d1", "d2", "d3"]
    said = [entry.sentence() for entry in run.feed.entries if entry.t_s >= 20]
    assert said == ["d0 leaves and asks to be forgotten", "the block of d0 is deleted on d1, d3"]


def test_a_suspicion_ends_with_a_newer_record_of_the_device(folder: Path) -> None:
    append(events_of(folder, "d1"), event(20.0, "suspected", peer="d0", incarnation=0))
    run = read(folder)
    assert states(run)["d0"] == "suspected" and run.devices["d0"].suspected_by == {"d1"}
    append(folder / "devices/d0/metrics.jsonl", {**synthetic_run.metric("d0", 9), "t1_s": 21.0})
    run.read()
    assert states(run)["d0"] == "training"


def test_a_killed_device_has_crashed_as_soon_as_the_launcher_or_a_peer_says_so(folder: Path) -> None:
    append(folder / "injected.jsonl", injected(20.0, "crash", "d0"))
    append(events_of(folder, "d1"), event(22.0, "peer_gone", peer="d3", incarnation=0, kind="crash"))
    run = read(folder)
    assert states(run)["d0"] == states(run)["d3"] == "crashed"
    append(events_of(folder, "d0"), {**event(25.0, "started", -1), "life": 1})
    run.read()
    assert states(run)["d0"] == "meeting"
    assert run.feed.entries[-1].sentence() == "d0 returns"


def test_a_stall_is_a_span_and_a_state(folder: Path) -> None:
    append(folder / "injected.jsonl", injected(20.0, "stall", "d0"))
    run = read(folder)
    assert states(run)["d0"] == "stalled"
    append(folder / "injected.jsonl", injected(23.0, "resume", "d0"))
    append(folder / "devices/d0/metrics.jsonl", {**synthetic_run.metric("d0", 9), "t1_s": 23.5})
    run.read()
    assert states(run)["d0"] == "training"
    assert [(s.device, s.start_s, s.end_s) for s in run.spans if s.kind == "stalled"] == [("d0", 20.0, 23.0)]


def test_lives_of_injected_events_are_counted_from_the_arrivals(folder: Path) -> None:
    for t_s, kind in ((20.0, "crash"), (21.0, "return"), (22.0, "crash"), (23.0, "return")):
        append(folder / "injected.jsonl", injected(t_s, kind, "d0"))
    said = [entry.sentence() for entry in read(folder).feed.entries if entry.t_s >= 20]
    assert said == ["d0 crashes", "d0 returns", "d0 crashes", "d0 returns"]


def test_accuracy_has_the_round_it_belongs_to_and_the_lag_is_said(folder: Path) -> None:
    evaluations = folder / "evaluations.jsonl"
    evaluations.write_text(json.dumps(synthetic_run.evaluation("d0", 4, "round", 0.5, 0.25, 0.0)) + "\n")
    for round_ in range(5, 10):
        snapshot = folder / "devices" / "d0" / "snapshots" / f"{round_:05d}-round.safetensors"
        snapshot.parent.mkdir(exist_ok=True)
        snapshot.touch()
    append(evaluations, synthetic_run.evaluation("d0", 5, "before:d2", 0.9, 0.9, 0.9))
    run = read(folder)
    assert (run.latest["d0"].round, run.latest["d0"].by_shard["d2"]) == (
        4,
        0.25,
    )  # not the state that is over
    assert run.evaluator_lag().text() == "evaluating round 4, devices at 9; 5 snapshots wait"
    assert EvaluatorLag(4, 9, 3, usual=3).text() == ""
    assert EvaluatorLag(None, None, 1).text() == "evaluating the first round, devices at 0; 1 snapshot waits"


def test_the_rest_of_the_run_is_estimated_from_the_pace(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run")
    reopen(folder)
    for path in folder.glob("devices/*/metrics.jsonl"):
        path.write_text("".join(line for line in path.read_text().splitlines(True)[:4]))
    run = read(folder)
    assert run.rounds_done() == 4
    assert run.left_s() == pytest.approx(6.0)  # rounds take one second
    (folder / "run.json").write_text("{}")
    assert run.read() and run.ended and run.left_s() is None


def test_a_damaged_record_is_left_out(folder: Path) -> None:
    append(events_of(folder, "d0"), {"event": "suspected"}, {"t_s": "x", "event": "slot", "round": 1})
    append(folder / "devices/d0/metrics.jsonl", {"round": 10}, {"t1_s": None})
    append(folder / "evaluations.jsonl", {"accuracy": 1})
    append(folder / "injected.jsonl", {"kind": "leave"})
    assert read(folder).devices["d0"].round == 9


def test_a_run_without_files_waits(tmp_path: Path) -> None:
    run = LiveRun(tmp_path / "none")
    assert not run.read()
    assert update(run, Cursor())["run"] == {"name": "none", "waiting": True}


def test_an_entry_of_several_devices_is_announced_after_the_others_have_recorded_it(folder: Path) -> None:
    run = read(folder)
    announcer = Announcer(run.feed)
    list(announcer.due(0.0, last=True))
    append(events_of(folder, "d3"), event(20.0, "suspected", peer="d1", incarnation=0))
    append(events_of(folder, "d0"), event(20.1, "leaving", kind="leave"))
    append(events_of(folder, "d1"), event(20.3, "deleted", peer="d0", incarnation=0))
    run.read()
    assert [e.kind for e in announcer.due(1.0)] == ["leave"]
    append(events_of(folder, "d3"), event(20.4, "deleted", peer="d0", incarnation=0))
    run.read()
    assert [e.sentence() for e in announcer.due(9.0)] == ["the block of d0 is deleted on d1, d3"]
    assert not list(announcer.due(99.0, last=True))


def test_a_page_gets_everything_once_and_then_what_is_new(folder: Path) -> None:
    run, cursor = read(folder), Cursor()
    first = update(run, cursor)
    assert first["first"] and len(first["spans"]) == len(run.spans) and first["feed"]
    append(events_of(folder, "d1"), event(20.3, "deleted", peer="d0", incarnation=0))
    run.read()
    update(run, cursor)
    append(events_of(folder, "d3"), event(20.4, "deleted", peer="d0", incarnation=0))
    run.read()
    second = update(run, cursor)
    assert not second["first"] and second["spans"] == []
    assert [entry["text"] for entry in second["feed"]] == ["the block of d0 is deleted on d1, d3"]
    assert json.dumps(second, allow_nan=False)


def test_bytes_are_summed_over_lives_and_latencies_are_those_of_the_newest(folder: Path) -> None:
    append(events_of(folder, "d0"), {**event(20.0, "started", -1), "life": 1})
    links = {"d1": {"sent_bytes": 7, "latency_s": {"p50": 0.5}}, "d3": {"sent_bytes": 1, "latency_s": None}}
    line = {**synthetic_run.metric("d0", 9), "life": 1, "links": links, "spent_total_bytes": 8}
    append(folder / "devices/d0/metrics.jsonl", line)
    run = read(folder)
    assert run.devices["d0"].sent_to() == {"d1": 1007, "d2": 500, "d3": 201}
    assert run.devices["d0"].latency_s("d1") == 0.5 and run.devices["d0"].latency_s("d3") == 0.001
    assert run.devices["d0"].spent_bytes == {0: 8000, 1: 8}


def test_events_that_the_devices_do_themselves_in_virtual_time_are_shown(folder: Path) -> None:
    for device, kind in (("d0", "crash"), ("d1", "stall"), ("d1", "partition"), ("d3", "partition")):
        scripted = event(20.0, "scripted", at_round=5, kind=kind)
        append(events_of(folder, device), scripted)
    run = read(folder)
    assert states(run)["d0"] == "crashed" and states(run)["d1"] == "stalled"
    said = [entry.kind for entry in run.feed.entries if entry.t_s >= 20]
    assert sorted(said) == ["crash", "partition", "stall"]


def test_events_of_unweft_churn_are_shown(folder: Path) -> None:
    epoch.write(folder)
    churn_log.log_event(folder, "crash", ["d0"])
    for path in (folder / "devices" / "d0").glob("*.jsonl"):
        path.unlink()
    assert states(read(folder))["d0"] == "crashed"


def test_a_decision_of_the_network_is_one_entry_with_its_residuals(folder: Path) -> None:
    residuals = {"early": {"local": 0.3, "consensus": 0.1, "heterogeneity": 0.2, "p": 0.9, "S": 1.0}}
    for device in ("d0", "d1"):
        made = event(20.0, "decision", epoch=7, digest="ab", reason="early -> steps 2", residuals=residuals)
        append(events_of(folder, device), made)
    run = read(folder)
    assert [e.by for e in run.feed.entries if e.kind == "decision"] == [["d0", "d1"]]
    (decision,) = update(run, Cursor())["decisions"]
    assert decision["residuals"] == {"early": {"local": 0.3, "consensus": 0.1, "heterogeneity": 0.2}}
    assert decision["priority"] == {"early": 0.9} and decision["epoch"] == 7


def test_messages_are_spans_of_their_senders(folder: Path) -> None:
    arrivals = {"d1": {"depart_s": [20.1, 20.2], "arrive_s": [20.2, 20.3], "bytes": 5, "messages": 1}}
    append(folder / "devices/d0/metrics.jsonl", {**synthetic_run.metric("d0", 9), "arrivals": arrivals})
    assert ("d1", "send", 20.1, 20.2, 9) in read(folder).spans


def test_the_work_before_the_local_steps_is_mixing_in_real_time_only() -> None:
    line = {"round": 3, "t0_s": 10.0, "t1_s": 14.0, "train_s": 3.0, "compute_s": 2.0}
    kinds = [(span.kind, span.start_s, span.end_s) for span in of_round("d0", line, real_time=True)]
    assert kinds == [("mix", 10.0, 11.0), ("train", 11.0, 13.0), ("wait", 13.0, 14.0)]
    assert [span.kind for span in of_round("d0", line, real_time=False)] == ["train", "wait"]


def test_a_run_that_goes_on_after_an_interruption_is_one_entry(folder: Path) -> None:
    append(folder / "injected.jsonl", {"round": 8, "kind": "resumed", "device": "d0, d1", "t_s": 20.0})
    for device in ("d0", "d1"):
        append(events_of(folder, device), event(21.0, "started") | {"life": 1})
        append(events_of(folder, device), event(21.1, "slot", incarnation=1, slot=0) | {"life": 1})
    append(folder / "injected.jsonl", injected(22.0, "leave", "d0"))
    append(events_of(folder, "d0"), event(22.1, "leaving", kind="leave") | {"life": 1})
    run = read(folder)
    assert (run.devices["d0"].life, run.devices["d1"].life) == (1, 1)
    assert [entry.sentence() for entry in run.feed.entries if entry.t_s >= 20] == [
        "the run goes on after an interruption, with d0, d1",
        "d0 leaves and asks to be forgotten",
    ]
