"""trace.json has the format of Chrome traces, and shows what the records say."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from emulation.analysis import records, trace
from emulation.analysis.trace import Interval, merged
from tests.support.command_line import unweft
from tests.support.synthetic_run import ALL, members, write

Event = dict[str, Any]
ROUNDS = sum(len(members(r)) for r in range(10))


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    folder = write(tmp_path_factory.mktemp("traced") / "run")
    found = json.loads(trace.write(folder).read_text())
    assert found["displayTimeUnit"] == "ms"
    return list(found["traceEvents"])


def of_kind(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["ph"] == kind]


def slices(events: list[Event], lane: str) -> list[Event]:
    return [e for e in of_kind(events, "X") if e["tid"] == trace.LANES.index(lane)]


# -- the documented format -------------------------------------------------------------------------------
def test_every_event_has_the_fields_of_its_kind(events: list[Event]) -> None:
    for event in events:
        assert event["ph"] in "MXisf" and isinstance(event["name"], str)
        assert all(type(event[name]) is int and event[name] >= 0 for name in ("pid", "tid", "ts"))
    assert all(type(e["dur"]) is int and e["dur"] > 0 for e in of_kind(events, "X"))
    assert {e["s"] for e in of_kind(events, "i")} <= {"g", "t"}


def test_slices_of_a_thread_do_not_overlap(events: list[Event]) -> None:
    threads = defaultdict(list)
    for event in of_kind(events, "X"):
        threads[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for found in threads.values():
        ordered = sorted(found)
        assert all(end <= start for (_, end), (start, _) in pairwise(ordered))


def test_every_flow_starts_and_ends_once_inside_a_slice(events: list[Event]) -> None:
    starts, ends = ({e["id"]: e for e in of_kind(events, kind)} for kind in "sf")
    assert starts.keys() == ends.keys() and len(starts) == len(of_kind(events, "s")) > 0
    for number, start in starts.items():
        assert start["ts"] <= ends[number]["ts"] and start["cat"] == ends[number]["cat"]
    for flow in [*starts.values(), *ends.values()]:
        around = [
            e
            for e in of_kind(events, "X")
            if (e["pid"], e["tid"]) == (flow["pid"], flow["tid"])
            and e["ts"] <= flow["ts"] <= e["ts"] + e["dur"]
        ]
        assert len(around) == 1


def test_every_process_and_thread_has_a_name(events: list[Event]) -> None:
    named = {(e["pid"], e["tid"]) for e in of_kind(events, "M") if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in events if e["pid"] != trace.RUN and e["ph"] != "M"} <= named
    names = [e["args"]["name"] for e in of_kind(events, "M") if e["name"] == "process_name"]
    assert names == ["the run", *ALL]


# -- the content -----------------------------------------------------------------------------------------
def test_rounds_steps_waits_and_traffic_are_shown(events: list[Event]) -> None:
    assert len(slices(events, "rounds")) == ROUNDS
    assert [e["name"] for e in slices(events, "work")[:2]] == ["5 local steps", "wait"]
    first = slices(events, "rounds")[0]
    assert (first["ts"], first["dur"], first["args"]["loss"]) == (0, 1_000_000, 3.0)
    assert len(slices(events, "receive")) == ROUNDS  # two neighbours at the same time are one slice
    assert slices(events, "send")[0]["args"]["bytes"] == {"d1": 90, "d2": 90}
    assert len(of_kind(events, "s")) == sum(len(members(r)) * (len(members(r)) - 1) for r in range(10))


def test_events_of_the_run_and_of_devices_are_shown(events: list[Event]) -> None:
    run = [(e["name"], e["args"]["device"]) for e in of_kind(events, "i") if e["pid"] == trace.RUN]
    assert run == [("leave", "d2"), ("join", "d3")]
    assert {"started", "peer_gone", "finished"} <= {e["name"] for e in of_kind(events, "i")}


def test_decisions_have_their_own_lane(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    line = {"life": 0, "t_s": 6.5, "round": 6, "event": "decision", "reason": "R_con is largest"}
    with (folder / "devices" / "d0" / "events.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    found = [e for e in trace.events(records.load(folder)) if e["name"] == "decision"]
    assert [e["tid"] for e in found] == [trace.LANES.index("decisions")]
    assert found[0]["args"]["reason"] == "R_con is largest"


def test_intervals_are_merged() -> None:
    found = merged([Interval(2, 3, {"a": 1}), Interval(0, 1, {"a": 1}), Interval(2.5, 4, {"a": 1, "b": 2})])
    assert found == [Interval(0, 1, {"a": 1}), Interval(2, 4, {"a": 2, "b": 2})]


def test_the_last_line_of_a_report_says_how_to_open_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = write(tmp_path / "run")
    assert unweft(monkeypatch, "report", folder) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"timeline: {folder}/trace.json; {trace.OPEN}"


def test_perfetto_reads_it(tmp_path: Path) -> None:
    """With Perfetto's own trace processor, where its binary is: the package downloads it from the network."""
    processor = pytest.importorskip("perfetto.trace_processor", reason="perfetto is not installed")
    path = trace.write(write(tmp_path / "run"))
    try:
        opened = processor.TraceProcessor(trace=str(path))
    except Exception as error:  # the binary is missing and cannot be downloaded
        pytest.skip(f"the trace processor does not start: {error}")
    with opened:
        count = "select count(*) as n from "
        assert next(iter(opened.query(f"{count} slice where name like 'round %'"))).n == ROUNDS
        assert next(iter(opened.query(f"{count} flow"))).n > 0
        assert next(iter(opened.query("select sum(value) as n from stats where severity = 'error'"))).n == 0
