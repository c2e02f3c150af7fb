"""Events of a scenario: what is drawn can be, what cannot be is said, and each device knows its part."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulation.launch import local
from emulation.launch.device_scripts import met, scripts
from emulation.scenario.events import (
    ChurnConfig,
    EventConfig,
    Population,
    cut_off,
    draw_churn,
    due,
    event_problems,
)
from emulation.scenario.loading import load
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from peers.runtime import partition
from peers.runtime.main import NEAR

KINDS = ("leave", "retire", "crash", "stall", "join", "return")


def event(round_: int, kind: str, device: str | None = None, **more: object) -> EventConfig:
    return EventConfig.model_validate({"round": round_, "kind": kind, "device": device, **more})


def scenario(*events: EventConfig, **more: object) -> Scenario:
    return Scenario.model_validate({"event": events, **more})


@given(
    st.integers(0, 10**6),
    st.floats(0, 3),
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=6),
    st.integers(1, 6),
    st.integers(0, 4),
    st.sampled_from(["forget", "keep"]),
)
def test_what_churn_draws_can_be(
    seed: int, rate: float, kinds: list[str], devices: int, more: int, on_crash: str
) -> None:
    config = ChurnConfig.model_validate({"rate": rate, "kind": tuple(kinds), "least": 1})
    initial = [f"d{i}" for i in range(devices)]
    fixed = [event(4, "leave", "d0")] if devices > 1 else []
    drawn = draw_churn(config, seed, 60, devices + more, Population(initial, on_crash), list(fixed))
    in_order = sorted(enumerate([*fixed, *drawn]), key=lambda numbered: numbered[1].round)
    if fixed:  # what was drawn before it did not know of it
        in_order = [(n, e) for n, e in in_order if e.round >= 4]
        drawn = [e for e in drawn if e.round >= 4]
    again = draw_churn(config, seed, 60, devices + more, Population(initial, on_crash), list(fixed))
    assert [e for e in again if e.round >= 4 or not fixed] == drawn
    if not fixed:
        assert not list(event_problems(in_order, Population(initial, on_crash), 60, devices + more))


def test_the_rate_of_churn_is_events_a_round() -> None:
    config = ChurnConfig(rate=0.5, kind="stall", stop=998)
    drawn = draw_churn(config, 1, 1000, 8, Population(["d0", "d1"], "forget"), [])
    assert len(drawn) == pytest.approx(500, abs=80)


def test_a_scenario_has_the_events_of_its_churn() -> None:
    made = scenario(churn={"rate": 0.2, "kind": "join"}, adapter={"max_devices": 9})
    joined = [e.device for e in made.events]
    assert joined == ["d6", "d7", "d8"]
    assert made.all_devices == ("d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7", "d8")
    assert made.events == scenario(churn={"rate": 0.2, "kind": "join"}, adapter={"max_devices": 9}).events


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{round=3, kind="return", device="d1"}', "is not gone"),
        ('{round=3, kind="partition"}', "groups"),
        ('{round=3, kind="partition", groups=[["d0"], ["d0", "d1"]]}', "twice"),
        ('{round=3, kind="partition", groups=[["d0"]], device="d1"}', "all kinds but partition"),
        ('{round=3, kind="heal", groups=[["d0"]]}', "groups"),
        ('{round=3, kind="leave"}', "the id of one"),
    ],
)
def test_an_event_that_cannot_be_is_refused(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "s.toml"
    file.write_text(f"devices.count = 3\nevent = [{line}]\n")
    with pytest.raises(InputError, match=says):
        load(file)


def test_in_a_partition_the_unlisted_are_a_group_too() -> None:
    devices = ["d0", "d1", "d2", "d3"]
    deaf = {device: cut_off(device, [["d0", "d1"]], devices) for device in devices}
    assert deaf["d0"] == {"d2", "d3"}
    assert deaf["d3"] == {"d0", "d1"}
    assert all((b in deaf[a]) == (a in deaf[b]) for a in devices for b in devices)


def test_each_life_of_a_device_has_its_part_of_the_script() -> None:
    made = scenario(
        event(1, "partition", groups=[["d0"]]),
        event(2, "leave", "d1"),
        event(3, "return", "d1"),
        event(5, "crash", "d1"),
    )
    first, second = (scripts(made, "d1", life) for life in (0, 1))
    assert [(s.kind, s.round) for s in first] == [("partition", 1), ("leave", 2)]
    assert [(s.kind, s.round) for s in second] == [("partition", 1), ("return", 3), ("crash", 5)]
    assert second[0].cut_off == {"d0"}


def test_one_that_starts_later_begins_with_those_who_are_there() -> None:
    made = scenario(
        event(2, "leave", "d1"), event(3, "return", "d1"), event(4, "join", "d9"), devices={"count": 3}
    )
    assert met(made, "d1", 0) == ["d0", "d2"]
    assert met(made, "d1", 1) == ["d0", "d2"]
    assert met(made, "d9", 0) == ["d0", "d2", "d1#1"]


def test_an_event_is_due_when_all_have_closed_its_round() -> None:
    listed = [event(2, "crash", "d0"), event(3, "leave", "d1")]
    assert due(listed, {"d0": 2, "d1": 1}) is None
    assert due(listed, {"d0": -1, "d1": -1}) is None
    assert due(listed, {"d0": 3, "d1": 2}) is listed[0]
    assert due(listed[1:], {"d1": 3, "d2": -1}) is listed[1]  # who has not begun holds up nobody
    assert due([], {"d0": 9}) is None and due(listed, {}) is None


def test_what_waits_for_a_device_holds_up_that_device_alone() -> None:
    joins, leaves, returns = (event(2, kind, "d9") for kind in ("join", "leave", "return"))
    listed, other = [joins, leaves, returns], event(2, "stall", "d1", duration_s=1.0)
    assert due(listed, {"d1": 2}) is joins
    assert due([leaves, returns, other], {"d1": 2, "d9": -1}) is other
    assert due([leaves, returns], {"d1": 2, "d9": 2}) is leaves
    assert due([returns], {"d1": 2, "d9": 2}) is None  # its last life goes on
    assert due([returns], {"d1": 2}) is returns
    assert due([returns, other], {"d1": 2}, can_return=lambda device: False) is other
    assert due([returns, event(2, "leave", "d9")], {"d1": 2}, can_return=lambda device: False) is None


def test_random_events_that_are_late_are_left_out_of_everybodys_last_rounds() -> None:
    listed, drawn = event(20, "leave", "d0"), event(20, "stall", "d1", duration_s=1.0)
    made = scenario(listed, churn={"rate": 0.5, "stop": 80}, round={"count": 100}, devices={"count": 3})
    assert made.without_late_churn([listed, drawn], {"d0": 90, "d1": 3}) == [listed, drawn]
    assert made.without_late_churn([listed, drawn], {"d0": 91, "d1": 3}) == [listed]
    assert made.without_late_churn([drawn], {}) == [drawn]


def run_state(made: Scenario, out: Path, pending: list[EventConfig]) -> local.Run:
    """A run of which nothing has been started."""
    return local.Run(
        scenario=made,
        out=out,
        epoch_ns=0,
        pending=pending,
        context=get_context("forkserver"),
        addresses={},
        channel=NEAR,
        keys={},
    )


def test_who_arrives_begins_with_those_who_are_there(tmp_path: Path) -> None:
    made = scenario(event(5, "join", "d3"), devices={"count": 3})
    state = run_state(made, tmp_path, [])
    assert local._met(state, "d0", 0, cohort=3) == ["d1", "d2"]
    for device, lives, life in (("d0", False, 0), ("d1", True, 1), ("d2", True, 0)):
        process = SimpleNamespace(pid=None, is_alive=partial(bool, lives))
        state.devices[device] = local.Started(process, life=life)  # type: ignore[arg-type]
    assert local._met(state, "d3", 0, cohort=0) == ["d1#1", "d2"]
    state.partition = (("d1",),)
    assert local._met(state, "d3", 0, cohort=0) == ["d2"]


def test_once_most_have_done_all_rounds_nothing_happens_any_more(tmp_path: Path) -> None:
    made = scenario(event(1, "join", "d3"), devices={"count": 3}, round={"count": 4})
    state = run_state(made, tmp_path, list(made.events))
    for device, lives, last in (("d0", False, 3), ("d1", False, 2), ("d2", True, 2)):
        process = SimpleNamespace(pid=None, is_alive=partial(bool, lives))
        state.devices[device] = local.Started(process)  # type: ignore[arg-type]
        state.last_round[device] = last
    assert not state.over()  # one was alone and so was done early
    state.last_round["d1"] = 3
    assert state.over()
    local._inject_due(state, None)
    assert state.pending == list(made.events)


def test_nobody_comes_when_there_are_as_many_as_allowed() -> None:
    config = ChurnConfig(rate=2.0, kind=("join", "return", "leave"), most=5)
    population = Population(["d0", "d1", "d2", "d3"], "delete")
    live, most = 4, 4
    for one in draw_churn(config, 3, 60, 32, population, []):
        live += 1 if one.kind in ("join", "return") else -1
        most = max(most, live)
    assert most == 5


def test_a_device_reads_whom_it_does_not_hear(tmp_path: Path) -> None:
    assert partition.read(tmp_path) == frozenset()
    partition.write(tmp_path, {"d1", "d2"})
    assert partition.read(tmp_path) == {"d1", "d2"}
    (tmp_path / partition.FILE).write_text("[1]")
    assert partition.read(tmp_path) == frozenset()


def test_a_partition_does_not_end_a_device_that_is_still_starting() -> None:
    imports = "import os, emulation.launch.preload_frozen; from peers.runtime import partition"
    starting = f"{imports}; os.kill(os.getpid(), partition.SIGNAL)"
    subprocess.run([sys.executable, "-c", starting], check=True, timeout=60)


def test_one_that_is_gone_hears_everyone_when_it_returns_after_the_heal(tmp_path: Path) -> None:
    made = scenario(event(1, "partition", groups=[["d0"]]), event(3, "heal"), devices={"count": 2})
    state = run_state(made, tmp_path, [])
    for device, lives in (("d0", True), ("d1", False)):
        process = SimpleNamespace(pid=None, is_alive=partial(bool, lives))
        state.devices[device] = local.Started(process)  # type: ignore[arg-type]
    for one, heard in ((made.events[0], frozenset({"d0"})), (made.events[1], frozenset())):
        local._inject(state, one, None)
        assert partition.read(tmp_path / "devices" / "d1") == heard
