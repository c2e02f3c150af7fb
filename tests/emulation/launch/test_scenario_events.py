"""Events of a scenario: random ones are possible, impossible ones are refused, devices know their own."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulation.launch import run_loop
from emulation.launch.device_scripts import present_at_start, script_of
from emulation.launch.device_specs import DeviceSpecs
from emulation.launch.forkserver import Forkserver
from emulation.launch.local import LocalBackend
from emulation.launch.run_state import DeviceStatus, RunState
from emulation.launch.start import Start
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
from peers.runtime.spec import NEAR

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
def test_random_events_are_possible_events(
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
def test_an_impossible_event_is_refused(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "s.toml"
    file.write_text(f"devices.count = 3\nevent = [{line}]\n")
    with pytest.raises(InputError, match=says):
        load(file)


def test_unlisted_devices_of_a_partition_are_a_group() -> None:
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
    first, second = (script_of(made, Start.of(made), "d1", life) for life in (0, 1))
    assert [(s.kind, s.round) for s in first] == [("partition", 1), ("leave", 2)]
    assert [(s.kind, s.round) for s in second] == [("partition", 1), ("return", 3), ("crash", 5)]
    assert second[0].cut_off == {"d0"}


def test_a_later_device_knows_the_devices_that_are_present() -> None:
    made = scenario(
        event(2, "leave", "d1"), event(3, "return", "d1"), event(4, "join", "d9"), devices={"count": 3}
    )
    present = partial(present_at_start, made, Start.of(made))
    assert present("d1", 0) == ["d0", "d2"]
    assert present("d1", 1) == ["d0", "d2"]
    assert present("d9", 0) == ["d0", "d2", "d1#1"]


def test_the_lives_of_a_run_that_goes_on_are_numbered_on() -> None:
    made = scenario(event(2, "leave", "d1"), event(6, "return", "d1"), event(7, "leave", "d1"))
    start = Start(devices=("d0", "d2"), events=made.events[1:], lives={"d0": 1, "d1": 1, "d2": 3})
    assert present_at_start(made, start, "d0", 1) == ["d2#3"]
    assert present_at_start(made, start, "d1", 1) == ["d0#1", "d2#3"]
    assert [s.kind for s in script_of(made, start, "d1", 1)] == ["return", "leave"]
    assert script_of(made, start, "d0", 1) == ()


def test_an_event_is_due_when_all_have_closed_its_round() -> None:
    listed = [event(2, "crash", "d0"), event(3, "leave", "d1")]
    assert due(listed, {"d0": 2, "d1": 1}) is None
    assert due(listed, {"d0": -1, "d1": -1}) is None
    assert due(listed, {"d0": 3, "d1": 2}) is listed[0]
    assert due(listed[1:], {"d1": 3, "d2": -1}) is listed[1]  # a device that has not begun holds up no event
    assert due([], {"d0": 9}) is None and due(listed, {}) is None


def test_a_waiting_event_holds_up_only_its_device() -> None:
    joins, leaves, returns = (event(2, kind, "d9") for kind in ("join", "leave", "return"))
    listed, other = [joins, leaves, returns], event(2, "stall", "d1", duration_s=1.0)
    assert due(listed, {"d1": 2}) is joins
    assert due([leaves, returns, other], {"d1": 2, "d9": -1}) is other
    assert due([leaves, returns], {"d1": 2, "d9": 2}) is leaves
    assert due([returns], {"d1": 2, "d9": 2}) is None  # its last life goes on
    assert due([returns], {"d1": 2}) is returns
    assert due([returns, other], {"d1": 2}, can_return=lambda device: False) is other
    assert due([returns, event(2, "leave", "d9")], {"d1": 2}, can_return=lambda device: False) is None


def test_a_random_departure_waits_for_newcomers_that_start(tmp_path: Path) -> None:
    """After a partition many rounds are over at once. Then departures would come before all arrivals."""
    listed = [event(1, "leave", "d0")]
    made = scenario(*listed, devices={"count": 3}, churn={"rate": 0.5, "least": 2})
    running = {device: DeviceStatus(running=True) for device in ("d0", "d1", "d2")}
    drawn = event(2, "leave", "d1")
    state = RunState(scenario=made, out=tmp_path, pending=[drawn], devices=running)
    state.last_round = {"d0": 9, "d1": 9, "d2": -1}
    assert state.next_due() is None
    state.pending = listed
    assert state.next_due() is listed[0]
    state.pending, state.last_round = [drawn], {"d0": 9, "d1": 9, "d2": 9}
    assert state.next_due() is drawn


def test_late_random_events_are_dropped_in_the_last_rounds() -> None:
    listed, drawn = event(20, "leave", "d0"), event(20, "stall", "d1", duration_s=1.0)
    made = scenario(listed, churn={"rate": 0.5, "stop": 80}, round={"count": 100}, devices={"count": 3})
    assert made.without_late_churn([listed, drawn], {"d0": 90, "d1": 3}) == [listed, drawn]
    assert made.without_late_churn([listed, drawn], {"d0": 91, "d1": 3}) == [listed]
    assert made.without_late_churn([drawn], {}) == [drawn]


def backend_of(made: Scenario, out: Path, **lives: bool) -> LocalBackend:
    """A backend whose devices have one life each. `lives`: whether the process of a device is alive."""
    state = RunState(scenario=made, out=out, epoch_ns=0, pending=list(made.events))
    specs = DeviceSpecs(state=state, addresses={}, channel=NEAR, keys={})
    backend = LocalBackend(state=state, forkserver=cast(Forkserver, None), specs=specs)
    for device, alive in lives.items():
        backend.lives[device] = [process(alive)]
    state.see_devices(backend.running())
    return backend


def process(alive: bool) -> ForkServerProcess:
    found = SimpleNamespace(pid=None, is_alive=partial(bool, alive), exitcode=None if alive else 0)
    return cast(ForkServerProcess, found)


def test_a_new_device_gets_the_addresses_of_devices_that_run_and_are_reachable(tmp_path: Path) -> None:
    made = scenario(event(5, "join", "d3"), devices={"count": 3})
    backend = backend_of(made, tmp_path)
    assert backend.known_at_start("d0", 0, cohort=3) == ["d1", "d2"]
    backend.lives = {"d0": [process(False)], "d1": [process(False), process(True)], "d2": [process(True)]}
    assert backend.known_at_start("d3", 0, cohort=0) == ["d1#1", "d2"]
    backend.state.partition = (("d1",),)
    assert backend.known_at_start("d3", 0, cohort=0) == ["d2"]


def test_no_event_happens_after_most_devices_have_done_all_rounds(tmp_path: Path) -> None:
    made = scenario(event(1, "join", "d3"), devices={"count": 3}, round={"count": 4})
    backend = backend_of(made, tmp_path, d0=False, d1=False, d2=True)
    state = backend.state
    state.last_round = {"d0": 3, "d1": 2, "d2": 2}
    assert not state.ending()  # one device was alone and so was done early
    state.last_round["d1"] = 3
    assert state.ending()
    run_loop.inject_due(state, backend)
    assert state.pending == list(made.events)


def test_no_device_joins_when_the_maximum_is_live() -> None:
    config = ChurnConfig(rate=2.0, kind=("join", "return", "leave"), most=5)
    population = Population(["d0", "d1", "d2", "d3"], "delete")
    live, most = 4, 4
    for one in draw_churn(config, 3, 60, 32, population, []):
        live += 1 if one.kind in ("join", "return") else -1
        most = max(most, live)
    assert most == 5


def test_a_device_reads_which_devices_it_cannot_reach(tmp_path: Path) -> None:
    assert partition.read(tmp_path) == frozenset()
    partition.write(tmp_path, {"d1", "d2"})
    assert partition.read(tmp_path) == {"d1", "d2"}
    (tmp_path / partition.FILE).write_text("[1]")
    assert partition.read(tmp_path) == frozenset()


def test_a_partition_does_not_end_a_device_that_is_still_starting() -> None:
    imports = "import os, emulation.launch.preload_frozen; from peers.runtime import partition"
    starting = f"{imports}; os.kill(os.getpid(), partition.SIGNAL)"
    subprocess.run([sys.executable, "-c", starting], check=True, timeout=60)


def test_a_device_that_returns_after_the_heal_reaches_every_device(tmp_path: Path) -> None:
    made = scenario(event(1, "partition", groups=[["d0"]]), event(3, "heal"), devices={"count": 2})
    backend = backend_of(made, tmp_path, d0=True, d1=False)
    for one, cut in ((made.events[0], frozenset({"d0"})), (made.events[1], frozenset())):
        run_loop.inject(backend.state, backend, one)
        assert partition.read(tmp_path / "devices" / "d1") == cut


def test_a_start_that_is_interrupted_leaves_the_other_devices_to_be_ended(tmp_path: Path) -> None:
    backend = backend_of(scenario(), tmp_path, d0=True)

    def interrupted(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    backend.specs = cast(DeviceSpecs, SimpleNamespace(spec=interrupted))
    with pytest.raises(KeyboardInterrupt):
        backend.start("d1")
    assert list(backend.running()) == ["d0"]
