"""What the service `setup` makes ready: a key once, a run's folder with nothing of another run in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulation import epoch, prepare
from emulation.scenario import read
from tests.emulation.test_cli import QUICK
from transport import keys

Patch = pytest.MonkeyPatch


@pytest.fixture
def at(monkeypatch: Patch, tmp_path: Path) -> Path:
    """Where the service's variables point to; no device is there."""
    for name, value in (
        ("SCENARIO", QUICK),
        ("SET", "devices.count=4 data.persons=3"),
        ("OUT", tmp_path / "results"),
        ("KEYS", tmp_path / "keys"),
        ("SEEDS", "tcp://device:7000"),
    ):
        monkeypatch.setenv(f"UNWEFT_{name}", str(value))
    (tmp_path / "keys").mkdir()  # a volume is there, and empty
    monkeypatch.setattr(prepare, "resolve", lambda seeds: [])
    return tmp_path


def test_the_scenario_is_there_resolved_and_the_run_begins(at: Path) -> None:
    assert prepare.main() == 0
    scenario = read(at / "results" / "scenario.toml")
    assert (scenario.devices.count, scenario.data.persons, scenario.name) == (4, 3, "quick")
    assert epoch.read(at / "results") is not None


def test_the_key_is_made_once(at: Path) -> None:
    prepare.main()
    first = keys.load(at / "keys", "d0")
    prepare.main()
    assert keys.load(at / "keys", "d0") == first


def test_an_earlier_run_goes_aside(at: Path) -> None:
    prepare.main()
    (at / "results" / "claims").mkdir()
    prepare.main()
    assert not (at / "results" / "claims").exists()
    (aside,) = (at / "results" / prepare.ASIDE).iterdir()
    assert {path.name for path in aside.iterdir()} == {"scenario.toml", "claims", epoch.FILE}


def test_a_run_that_goes_on_is_left_alone(at: Path, monkeypatch: Patch) -> None:
    prepare.main()
    (at / "results" / "claims").mkdir()
    began = epoch.read(at / "results")
    monkeypatch.setattr(prepare, "resolve", lambda seeds: ["tcp://10.0.0.3:7000"])
    assert prepare.main() == 0
    assert (at / "results" / "claims").exists() and epoch.read(at / "results") == began


def test_a_scenario_that_cannot_be_changes_nothing(
    at: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNWEFT_SET", "devices.cuont=2")
    assert prepare.main() == 2
    assert "devices.cuont" in capsys.readouterr().err
    assert not (at / "results").exists() and not list((at / "keys").iterdir())
