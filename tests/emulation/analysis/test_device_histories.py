"""What became of each device of an interrupted run: every record of a departure counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coordinator_free.identifiers import BlockKey
from emulation.analysis.device_histories import History, Incarnation, find
from emulation.analysis.records import RunRecords
from emulation.scenario.schema import Scenario

D2 = BlockKey("d2", 0)


def started(t_s: float, life: int = 0) -> dict[str, Any]:
    return {"t_s": t_s, "event": "started", "life": life}


def slot(t_s: float, incarnation: int = 0, number: int = 2) -> dict[str, Any]:
    return {"t_s": t_s, "event": "slot", "incarnation": incarnation, "slot": number}


def injected(kind: str, t_s: float, device: str = "d2") -> dict[str, Any]:
    return {"t_s": t_s, "kind": kind, "device": device, "round": 3}


def history(
    *events: dict[str, Any], launcher: Any = (), others: Any = (), forgotten: Any = (), device: str = "d2"
) -> History:
    scenario = Scenario.model_validate({"devices": {"count": 3}})
    run = RunRecords(Path(), scenario, ["d0", device], events={"d0": list(others), device: list(events)})
    return find(run, launcher, forgotten)[device]


def test_a_device_that_nobody_ended_goes_on() -> None:
    found = history(started(0.0), slot(1.0))
    assert found == History((Incarnation(D2, 2, ""),), "")
    assert history() == History((), "")  # it was killed before it had a slot


def test_a_leave_is_a_leave_whoever_recorded_it() -> None:
    alive = started(0.0), slot(1.0)
    told = {"t_s": 6.0, "event": "peer_gone", "peer": "d2", "incarnation": 0, "kind": "leave"}
    gone = History((Incarnation(D2, 2, "leave"),), "leave")
    assert history(*alive, launcher=[injected("leave", 5.0)]) == gone  # the signal did not arrive
    assert history(*alive, {"t_s": 5.0, "event": "leaving", "kind": "leave"}) == gone
    assert history(*alive, others=[told]) == gone
    assert history(*alive, forgotten=[D2]) == gone  # the signed wish in its folder


def test_a_leave_asks_for_more_than_a_crash_that_followed() -> None:
    events = injected("leave", 5.0), injected("crash", 5.1)
    assert history(started(0.0), slot(1.0), launcher=events).gone == "leave"


def test_a_verdict_of_others_may_be_wrong() -> None:
    told = {"t_s": 6.0, "event": "peer_gone", "peer": "d2", "incarnation": 0, "kind": "crash"}
    assert history(started(0.0), slot(1.0), others=[told]).gone == ""


def test_a_device_that_came_back_goes_on_and_its_first_block_stays_forgotten() -> None:
    launcher = injected("leave", 5.0), injected("return", 8.0)
    found = history(started(0.0), slot(1.0), started(8.5, 1), slot(9.0, 1, 4), launcher=launcher)
    assert found == History((Incarnation(D2, 2, "leave"), Incarnation(BlockKey("d2", 1), 4, "")), "")
    before_its_process = history(started(0.0), slot(1.0), launcher=launcher)
    assert before_its_process.gone == "" and before_its_process.incarnations[0].end == "leave"


def test_a_device_that_was_to_join_is_there() -> None:
    assert history(launcher=[injected("join", 4.0, "d9")], device="d9") == History((), "")


def test_a_device_whose_process_waited_for_its_join_was_not_there() -> None:
    """In virtual time its process runs from the start, and has records of its end after Ctrl-C."""
    scenario = Scenario.model_validate({"devices": {"count": 1}})
    waiting = {"t_s": 3.0, "event": "finished", "life": 0}
    run = RunRecords(Path(), scenario, ["d0", "d9"], events={"d0": [], "d9": [waiting]})
    assert list(find(run, (), ())) == ["d0"]


def test_an_incarnation_that_its_owner_replaced_has_no_end() -> None:
    found = history(started(0.0), slot(1.0), slot(3.0, 1), launcher=[injected("retire", 5.0)])
    assert [i.end for i in found.incarnations] == ["", "retire"]
