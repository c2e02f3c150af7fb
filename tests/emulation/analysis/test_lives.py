"""Two lives of one device: order, counters and the device's events do not depend on equal times."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from emulation.analysis.link_totals import final_links, sent_by_round, total_sent
from emulation.analysis.lives import event_order, with_lives
from emulation.launch.device_scripts import executed_events, not_executed
from emulation.scenario.events import EventConfig
from emulation.scenario.schema import Scenario


def line(life: int, round_: int, t1_s: float, sent: int) -> dict[str, Any]:
    return {"life": life, "round": round_, "t1_s": t1_s, "links": {"d0": {"sent_bytes": sent}}}


def finished(life: int, t_s: float, sent: int) -> dict[str, Any]:
    return {"life": life, "t_s": t_s, "event": "finished", "links": {"d0": {"sent_bytes": sent}}}


def started(t_s: float) -> dict[str, Any]:
    return {"t_s": t_s, "event": "started"}


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["kind"] for event in sorted(events, key=event_order)]


def test_a_life_ends_before_the_next_one_arrives_and_arrives_before_its_own_events() -> None:
    at = {"t_s": 1.0, "round": 2, "device": "d2"}
    leave, join = {**at, "kind": "leave", "life": 0}, {**at, "kind": "join", "life": 1}
    again = {**at, "kind": "leave", "life": 1}
    assert sorted([again, join, leave], key=event_order) == [leave, join, again]


def test_without_lives_a_departure_comes_before_an_arrival() -> None:
    at = {"t_s": 1.0, "round": 2, "device": "d2"}
    assert kinds([{**at, "kind": "join"}, {**at, "kind": "leave"}]) == ["leave", "join"]


def test_counters_of_lives_that_overlap_in_time_are_summed_by_life() -> None:
    metrics = [line(1, 5, 1.0, 30), line(0, 5, 1.0, 100), line(1, 6, 2.0, 50)]
    events = [finished(0, 1.5, 120), finished(1, 3.0, 70)]
    assert total_sent(final_links(metrics, events)) == 120 + 70
    assert sent_by_round(metrics) == {5: 130, 6: 20}


def test_records_without_lives_are_numbered_by_the_starts_before_them() -> None:
    plain = {"round": 1, "links": {}}
    metrics, events = with_lives(
        [{**plain, "t1_s": 1.0}, {**plain, "t1_s": 6.0}], [started(0.0), started(5.0)]
    )
    assert [m["life"] for m in metrics] == [e["life"] for e in events] == [0, 1]


def scripted(kind: str, t_s: float, **more: Any) -> dict[str, Any]:
    return {"t_s": t_s, "event": "scripted", "kind": kind, "at_round": 2, **more}


def write(out: Path, device: str, *events: dict[str, Any]) -> None:
    folder = out / "devices" / device
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_the_race_of_two_lives_for_one_file_does_not_order_their_events(tmp_path: Path) -> None:
    write(tmp_path / "old", "d2", scripted("join", 1.0), scripted("leave", 1.0))
    write(tmp_path / "new", "d2", scripted("join", 1.0, life=1), scripted("leave", 1.0, life=0))
    for name in ("old", "new"):
        assert [e["kind"] for e in executed_events(tmp_path / name, ["d2"])] == ["leave", "join"]


def test_equal_events_of_two_lives_both_count_and_a_partition_counts_once(tmp_path: Path) -> None:
    for device in ("d0", "d2"):
        lives = (0, 1) if device == "d2" else ()
        leaves = [scripted("leave", 1.0 + life, life=life) for life in lives]
        write(tmp_path, device, scripted("partition", 0.5, life=0), *leaves)
    found = executed_events(tmp_path, ["d0", "d2"])
    assert [e["kind"] for e in found] == ["partition", "leave", "leave"]


def test_an_event_that_nobody_did_is_not_executed() -> None:
    events = (
        EventConfig(round=2, kind="leave", device="d2"),
        EventConfig(round=2, kind="join", device="d2"),
        EventConfig(round=3, kind="heal"),
        EventConfig(round=3, kind="heal"),
    )
    scenario = cast(Scenario, SimpleNamespace(events=events))
    done = [{"round": 2, "kind": "leave", "device": "d2"}]
    assert not_executed(scenario, done) == [*events[1:]]
    cut = {"round": 3, "kind": "heal", "device": "d0 | d1"}  # as the launcher records it
    assert not_executed(scenario, [*done, cut]) == [events[1], events[3]]
