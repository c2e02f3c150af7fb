"""A run's folder that devices share: the first makes it ready, and no file of another run stays in it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from emulation.scenario.loading import load, read
from emulation.scenario.schema import Scenario
from emulation.testbed import epoch, run_folder
from emulation.testbed.id_leases import Claim
from peers.errors import InputError
from tests.support.command_line import QUICK
from transport.security import keys


class Service:
    """Devices that start and end."""

    def __init__(self, folder: Path) -> None:
        self.run, self.keys = folder / "results", folder / "keys"
        self.keys.mkdir()  # a volume is there, and empty
        self.lives: list[Claim] = []

    def start(self, token: str, *overrides: str) -> tuple[Scenario, str]:
        make = partial(load, Path(QUICK), overrides)
        scenario, claim = run_folder.enter(self.run, self.keys, make, token)
        self.lives.append(claim)
        return scenario, claim.id

    def all_end(self) -> None:
        while self.lives:
            self.lives.pop().release()


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def test_the_first_device_makes_the_folder_ready_for_all(service: Service) -> None:
    first, name = service.start("a", "data.persons=3")
    began = epoch.read(service.run)
    second, other = service.start("b", "data.persons=4")  # too late: the run has a scenario
    assert first == second == read(service.run / "scenario.toml") and first.data.persons == 3
    assert (name, other) == ("d0", "d1")
    assert began is not None and epoch.read(service.run) == began
    service.all_end()


def test_the_key_is_made_once(service: Service) -> None:
    service.start("a")
    first = keys.load(service.keys, "d0")
    service.all_end()
    service.start("b")
    assert keys.load(service.keys, "d0") == first
    service.all_end()


def test_no_key_is_made_without_encryption(service: Service) -> None:
    service.start("a", "keys.enabled=false")
    assert not list(service.keys.iterdir())
    service.all_end()


def test_a_run_without_live_devices_is_moved_aside(service: Service) -> None:
    service.start("a", "data.persons=3")
    service.all_end()
    scenario, name = service.start("b")
    assert scenario.data.persons == 2 and name == "d0"
    (aside,) = (service.run / run_folder.ASIDE).iterdir()
    assert {path.name for path in aside.iterdir()} == {"scenario.toml", "claims", epoch.FILE}
    service.all_end()


def test_a_run_with_a_live_device_goes_on(service: Service) -> None:
    for token in "ab":
        service.start(token)
    service.lives.pop(0).release()
    assert service.start("a")[1] == "d0"  # it returns
    assert not (service.run / run_folder.ASIDE).exists()
    service.all_end()


def test_a_run_that_a_launcher_made_ready_stays_as_it_is(service: Service) -> None:
    service.run.mkdir()
    run_folder.begin(service.run, load(Path(QUICK), ["data.persons=7"]))
    scenario, name = service.start("a")
    assert scenario.data.persons == 7 and name == "d0"
    service.all_end()


def test_two_runs_are_moved_to_two_folders(service: Service) -> None:
    for token in "abc":
        service.start(token)
        service.all_end()
    assert len(list((service.run / run_folder.ASIDE).iterdir())) == 2


def test_a_device_with_a_given_id_continues_in_its_folder(tmp_path: Path) -> None:
    """It keeps its files, such as its identity, and the first resolved scenario."""
    for persons in (3, 4):
        scenario = load(Path(QUICK), [f"data.persons={persons}"])
        run_folder.enter_as(tmp_path, scenario, "d1", "a").release()
        (tmp_path / "kept").touch()
    assert read(tmp_path / "scenario.toml").data.persons == 3
    assert (tmp_path / "kept").exists() and not (tmp_path / run_folder.ASIDE).exists()


def test_an_invalid_scenario_changes_nothing(service: Service) -> None:
    with pytest.raises(InputError, match=r"devices\.cuont"):
        service.start("a", "devices.cuont=2")
    assert [path.name for path in service.run.iterdir()] == [run_folder.LOCK]
    assert not list(service.keys.iterdir())
