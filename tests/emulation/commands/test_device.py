"""`unweft device` finds its id, its address, other devices and the start time of the run."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from emulation.scenario.loading import load
from emulation.testbed import endpoints, epoch, id_leases, run_folder, start_gate
from peers.runtime import main as device_module
from peers.runtime.spec import DeviceSpec
from tests.support.command_line import QUICK, unweft
from transport.clocks.real import RealClock
from transport.security import keys
from transport.security.keys import DeviceIdentity

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
SERVICE = {"device": ["10.0.0.12", "10.0.0.3", "10.0.0.4"]}
OWN = "10.0.0.4"


@pytest.fixture(autouse=True)
def network(monkeypatch: Patch) -> None:
    """A service of three containers; this device is one of them."""

    def getaddrinfo(host: str, port: int, family: int) -> list[Any]:
        if host not in SERVICE and not host[0].isdecimal():
            raise socket.gaierror(-2, "Name or service not known")
        return [(family, 1, 6, "", (address, port)) for address in SERVICE.get(host, [host])]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(endpoints, "local_addresses", lambda: ["127.0.0.1", "172.17.0.9", OWN])


@pytest.fixture
def started(monkeypatch: Patch) -> list[DeviceSpec]:
    """The specifications of started devices; none of them runs."""
    found: list[DeviceSpec] = []

    def run_device(spec: DeviceSpec) -> int:
        found.append(spec)
        return 0

    monkeypatch.setattr(device_module, "run_device", run_device)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    return found


def start(monkeypatch: Patch, run: Path, /, **variables: str) -> int:
    """Run `unweft device` as a container does, with all settings from the environment."""
    folder = run.with_name(f"{run.name}-keys")
    if not folder.exists():
        keys.generate(folder)
    given = {
        **{"scenario": QUICK, "listen": "tcp://0.0.0.0:7000", "out": str(run), "keys": str(folder)},
        **{"seeds": "tcp://device:7000", **variables},
    }
    with monkeypatch.context() as environment:
        for name, value in given.items():
            environment.setenv(f"UNWEFT_{name.upper()}", value)
        return unweft(monkeypatch, "device")


# -- the others ------------------------------------------------------------------------------------------


def test_a_name_stands_for_all_its_addresses_in_numeric_order() -> None:
    found = [f"tcp://10.0.0.{number}:7000" for number in (3, 4, 12)]
    assert endpoints.resolve("tcp://device:7000") == found


def test_an_unknown_name_has_no_address() -> None:
    assert endpoints.resolve("tcp://nobody:7000") == []


@pytest.mark.parametrize("host", ["0.0.0.0", "*"])
def test_a_device_advertises_its_address_in_the_shared_network(host: str) -> None:
    others = endpoints.resolve("tcp://device:7000")
    assert endpoints.own(f"tcp://{host}:7001", others) == f"tcp://{OWN}:7001"


def test_a_device_that_listens_on_one_address_advertises_it() -> None:
    assert endpoints.own("tcp://192.0.2.7:7000", []) == "tcp://192.0.2.7:7000"


def test_without_a_service_a_device_advertises_its_source_address(monkeypatch: Patch) -> None:
    monkeypatch.undo()
    host, port = endpoints.split("--listen", endpoints.own("tcp://0.0.0.0:7000", ["tcp://127.0.0.1:7000"]))
    assert (host, port) == ("127.0.0.1", 7000)


def test_local_addresses_are_those_of_the_interfaces(monkeypatch: Patch) -> None:
    monkeypatch.undo()
    assert "127.0.0.1" in endpoints.local_addresses()
    assert psutil.net_if_addrs()


def test_unweft_set_may_have_the_former_spelling_of_a_key(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec], capsys: Capture
) -> None:
    assert start(monkeypatch, tmp_path / "run", set="correction.handover=0.4") == 0
    assert started[0].config.correction.refit == 0.4
    lines = [line for line in capsys.readouterr().err.splitlines() if "correction.handover" in line]
    assert len(lines) == 1 and "is now correction.refit" in lines[0]
    both = "correction.handover=0.4 correction.refit=0.4"
    assert start(monkeypatch, tmp_path / "other", set=both) == 2 and len(started) == 1


def test_a_device_gets_the_addresses_of_its_service_as_seeds(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec]
) -> None:
    assert start(monkeypatch, tmp_path / "run", id="d1") == 0
    (spec,) = started
    assert spec.advertise == f"tcp://{OWN}:7000"
    assert spec.seeds == ("tcp://10.0.0.3:7000", "tcp://10.0.0.12:7000")
    assert spec.listen == "tcp://0.0.0.0:7000" and spec.keys is not None


# -- its id ----------------------------------------------------------------------------------------------


def test_a_replica_is_the_device_of_its_number(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec]
) -> None:
    start(monkeypatch, tmp_path / "run", replica="3")
    assert started[0].id == "d2"


def test_the_devices_of_a_run_share_its_name(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec], capsys: Capture
) -> None:
    """From the folder that they share, from the seed where each has a folder, or as the user says."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    start(monkeypatch, shared)
    start(monkeypatch, shared, id="d1")
    assert started[0].run == started[1].run and len(started[0].run) == 16
    start(monkeypatch, own, id="d0")
    start(monkeypatch, own, id="d0", run="second")
    assert [spec.run for spec in started[2:]] == [f"seed-{load(Path(QUICK)).seed}", "second"]
    start(monkeypatch, shared)  # all have ended: a new run begins
    assert started[4].run not in ("", started[0].run)


def test_without_an_id_a_device_claims_one(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec]
) -> None:
    run_folder.begin(tmp_path / "run", load(Path(QUICK)))
    others = [id_leases.claim(tmp_path / "run", "d", token) for token in "abc"]
    start(monkeypatch, tmp_path / "run")
    assert started[0].id == "d3" and started[0].cohort == 0  # not of the first three: it joins
    others[1].release()
    start(monkeypatch, tmp_path / "run")
    assert started[1].id == "d4"
    for other in (others[0], others[2]):
        other.release()


def test_a_device_that_kept_its_identity_returns(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec]
) -> None:
    run_folder.begin(tmp_path / "run", load(Path(QUICK)))
    another = id_leases.claim(tmp_path / "run", "d", "another")  # keeps the run alive
    for container in ("a", "b", "a"):
        monkeypatch.setattr(socket, "gethostname", lambda name=container: name)
        start(monkeypatch, tmp_path / "run", identity=str(tmp_path / "identity"))
    assert [spec.id for spec in started] == ["d1", "d2", "d1"]
    assert started[0].signing == started[2].signing != started[1].signing
    another.release()


def test_the_id_of_a_live_device_is_refused(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec], capsys: Capture
) -> None:
    another = id_leases.claim(tmp_path / "run", "d", "another")
    assert start(monkeypatch, tmp_path / "run", id="d0") == 2
    assert "--id: d0 lives already" in capsys.readouterr().err and not started
    another.release()
    assert start(monkeypatch, tmp_path / "run", id="d0") == 0


@pytest.mark.parametrize("name", ["a/b", "3", ""])
def test_an_invalid_id_is_refused(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec], capsys: Capture, name: str
) -> None:
    """An empty variable means no id: compose passes unset variables as empty ones."""
    status = start(monkeypatch, tmp_path / "run", id=name)
    if name:
        assert status == 2 and "--id" in capsys.readouterr().err and not started
    else:
        assert started[0].id == "d0"


def test_an_invalid_identity_is_bad_input(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec], capsys: Capture
) -> None:
    folder = tmp_path / "identity"
    path = folder / f"{socket.gethostname()}.key"
    DeviceIdentity.load_or_create(path)
    path.write_bytes(b"short")
    assert start(monkeypatch, tmp_path / "run", identity=str(folder)) == 2
    assert "--identity" in capsys.readouterr().err and not started


# -- the run ---------------------------------------------------------------------------------------------


def test_all_devices_count_time_from_the_same_moment(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    epoch.write(run)
    start(monkeypatch, run)
    assert started[0].epoch_ns == epoch.read(run) is not None


def test_the_start_time_of_another_machine_is_not_used(monkeypatch: Patch, tmp_path: Path) -> None:
    epoch.write(tmp_path)
    monkeypatch.setattr(epoch, "boot_id", lambda: "another")
    assert epoch.read(tmp_path) is None


def test_on_several_machines_devices_use_wall_clock_time(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec]
) -> None:
    epoch.write(tmp_path)
    monkeypatch.setattr(epoch, "boot_id", lambda: "another")
    start(monkeypatch, tmp_path, wall_clock="1")
    epoch_ns = started[0].epoch_ns
    assert epoch_ns is not None
    assert started[0].wall_clock and epoch_ns == epoch.read(tmp_path, wall=True)
    assert abs(time.time_ns() - RealClock(wall=True).now()) < 10**9
    assert abs(epoch_ns - RealClock(wall=True).now()) < 60 * 10**9


def test_the_grace_comes_from_the_variable_or_the_scenario(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec]
) -> None:
    start(monkeypatch, tmp_path / "run", leave_grace_s="2.5")
    start(monkeypatch, tmp_path / "run")
    assert [spec.config.membership.leave_grace_s for spec in started] == [2.5, 0.0]


def test_a_device_begins_when_its_gate_is_open(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec]
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert not started
        if len(slept) == 3:
            start_gate.open_to(tmp_path / "run", "d0")

    monkeypatch.setattr(time, "sleep", sleep)
    start(monkeypatch, tmp_path / "run", gates=str(tmp_path / "run" / start_gate.FOLDER))
    assert len(slept) == 3 and started[0].id == "d0"


def test_snapshots_are_written_only_when_asked_for(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec]
) -> None:
    start(monkeypatch, tmp_path / "run", snapshots="1")
    start(monkeypatch, tmp_path / "run")
    assert [spec.snapshot_every for spec in started] == [10, 0]


def test_links_are_those_of_the_scenarios_radio(
    monkeypatch: Patch, tmp_path: Path, started: list[DeviceSpec]
) -> None:
    start(monkeypatch, tmp_path / "run")
    assert started[0].channel.link(0, "d0", "d1", ["d0", "d1"]).latency_ns == 5_000_000
