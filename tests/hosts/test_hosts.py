"""Devices on three hosts: start, learn, leave, a host that vanishes, and a clock that is 200 ms off."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emulation.analysis import summary
from emulation.report import text
from emulation.testbed import reconstruction
from tests.support.hosts import Host, hosts, python, tell
from transport.security import keys

SCENARIO = """
[devices]
count = 5
[data]
persons = 2
batch = 8
[adapter]
rank = 2
max_devices = 8
[round]
count = 100000
local_steps = 1
[correction]
rounds = 2
[membership]
leave_grace_s = 1.0
"""
AHEAD_S = 0.2
PLACES = {"d0": 0, "d1": 0, "d2": 1, "d3": 1, "d4": 2}  # device: its host
PATIENCE_S = 150.0


class Machines:
    """Five devices on three hosts. Hosts share no folder: each has its own, with a copy of the key."""

    def __init__(self, root: Path, machines: list[Host]) -> None:
        self.root, self.machines = root, machines
        (root / "scenario.toml").write_text(SCENARIO)
        keys.generate(root / "keys")

    def start(self, device: str) -> None:
        host = self.machines[PLACES[device]]
        port = 7000 + int(device[1:])
        command = python(
            *("unweft", "device", "--id", device, "--scenario", str(self.root / "scenario.toml")),
            *("--listen", f"tcp://0.0.0.0:{port}", "--seeds", f"tcp://{self.machines[0].address}:7000"),
            *("--keys", str(self.root / "keys"), "--out", str(self.root / host.name), "--wall-clock"),
        )
        host.start(device, command, self.root / f"{device}.log", {"OMP_NUM_THREADS": "1"})

    def folder(self, device: str) -> Path:
        return self.root / self.machines[PLACES[device]].name / "devices" / device

    def lines(self, device: str, file: str) -> list[dict[str, Any]]:
        path = self.folder(device) / file
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def until(self, true: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            if time.monotonic() > deadline:
                logs = {path.name: path.read_text()[-500:] for path in self.root.glob("*.log")}
                raise AssertionError(f"never: {what}; {logs}")
            time.sleep(0.5)

    def together(self, *devices: str) -> bool:
        """Whether each of the devices has these members, in its last closed round."""
        last = [self.lines(device, "metrics.jsonl")[-1:] for device in devices]
        return all(line and sorted(line[0]["members"]) == sorted(devices) for line in last)

    def clock(self, device: str, peer: str) -> dict[str, float] | None:
        last = self.lines(device, "metrics.jsonl")[-1]
        found: dict[str, float] | None = last["links"].get(peer, {}).get("clock_s")
        return found

    def gone(self, device: str) -> set[tuple[str, str]]:
        """The devices that a device saw go, and how."""
        return {
            (e["peer"], e["kind"]) for e in self.lines(device, "events.jsonl") if e["event"] == "peer_gone"
        }


@pytest.fixture(scope="module")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with hosts([0.0, AHEAD_S, 0.0]) as machines:
        bed = Machines(tmp_path_factory.mktemp("hosts"), machines)
        for device in PLACES:
            bed.start(device)
        bed.until(lambda: bed.together(*PLACES), "all devices train together")
        yield bed


def test_devices_of_three_hosts_learn_together(testbed: Machines) -> None:
    first = testbed.lines("d2", "metrics.jsonl")[-1]["round"]
    testbed.until(lambda: testbed.lines("d2", "metrics.jsonl")[-1]["round"] >= first + 5, "five more rounds")
    started = next(e for e in testbed.lines("d2", "events.jsonl") if e["event"] == "started")
    assert started["address"] == f"tcp://{testbed.machines[1].address}:7002"


@pytest.mark.parametrize(
    ("device", "peer", "ahead_s"), [("d0", "d2", -AHEAD_S), ("d2", "d0", AHEAD_S), ("d2", "d3", 0)]
)
def test_the_difference_of_two_clocks_is_in_the_records(
    testbed: Machines, device: str, peer: str, ahead_s: float
) -> None:
    testbed.until(lambda: testbed.clock(device, peer), "a measured clock")
    clock = testbed.clock(device, peer)
    assert clock is not None and clock["error"] < 0.05
    assert clock["difference"] == pytest.approx(ahead_s, abs=clock["error"])


def test_a_leave_is_known_on_all_hosts(testbed: Machines) -> None:
    tell(testbed.folder("d1"), signal.SIGTERM)
    rest = ("d0", "d2", "d3", "d4")
    testbed.until(lambda: testbed.together(*rest), "rounds without the leaver")
    assert all(("d1", "leave") in testbed.gone(device) for device in rest)
    assert testbed.machines[0].processes["d1"].wait(60) == 0


def test_a_host_that_vanishes_costs_its_devices_only(testbed: Machines) -> None:
    testbed.machines[2].vanish()
    rest = ("d0", "d2", "d3")
    testbed.until(lambda: testbed.together(*rest), "rounds without the host")
    assert all(testbed.gone(device) == {("d1", "leave"), ("d4", "crash")} for device in rest)
    testbed.machines[2].kill()


def test_the_end_and_the_report_name_the_clocks(testbed: Machines, tmp_path: Path) -> None:
    rest = ("d0", "d2", "d3")
    for device in rest:
        tell(testbed.folder(device), signal.SIGTERM)
    for device in rest:
        assert testbed.machines[PLACES[device]].processes[device].wait(60) == 0
    run = tmp_path / "run"
    for host in testbed.machines:  # as an operator collects the results
        shutil.copytree(testbed.root / host.name, run, dirs_exist_ok=True)
    reconstruction.complete(run)
    said = [s for s in text.sentences(summary.build(run)) if "clocks" in s]
    assert len(said) == 1 and said[0].startswith("latencies hold the difference of two clocks: at most 20")
