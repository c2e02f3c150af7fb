"""`unweft --version`, `unweft list`, completion, suggestions, and scenarios by their names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from emulation.commands.run import completed
from emulation.launch import compose_project
from emulation.report import estimate_table
from emulation.scenario import estimate, library, loading
from emulation.scenario.events import KINDS, EventConfig
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from tests.support.command_line import ROOT, unweft
from tests.support.learners import small_learner


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert unweft(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == "unweft 0.1.0\n"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("policies", "dominant"),
        ("policies", "uniform"),
        ("topologies", "ring-chords"),
        ("mixing", "newest"),
        ("allocators", "fifo"),
        ("tasks", "jsonl"),
        ("models", "tiny"),
        ("events", "partition"),
        ("scenarios", "demo"),
    ],
)
def test_list_shows_each_name_with_a_description(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, name: str
) -> None:
    assert unweft(monkeypatch, "list", kind) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name} "))
    assert len(line.split()) > 3


def test_every_kind_can_be_listed_and_every_entry_is_described() -> None:
    """In a process of its own: other tests register plugins without a description."""
    bad = "[k for k, (_, names) in KINDS.items() if not names() or not all(names().values())]"
    code = f"from emulation.commands.list import KINDS; print({bad})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_unknown_kind_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unweft(monkeypatch, "list", "polices") == 2
    assert capsys.readouterr().err.startswith("unweft: list: 'polices' is not known; allowed: policies, ")


def test_every_kind_of_event_is_described() -> None:
    assert set(KINDS) == set(EventConfig.model_json_schema()["properties"]["kind"]["enum"])


def test_a_misspelt_command_gets_a_suggestion(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unweft(monkeypatch, "rnu") == 2
    assert "Did you mean 'run'?" in capsys.readouterr().err


def test_completion_offers_scenarios_and_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demos").mkdir()
    (tmp_path / "demos" / "mine.toml").touch()
    (tmp_path / "notes.txt").touch()
    assert completed("dem") == ["demo", "demos/"]
    assert completed("demos/") == ["demos/mine.toml"]
    assert completed("n") == []


# -- packaged scenarios ----------------------------------------------------------------------------------
def test_the_package_has_every_scenario_of_the_repository(tmp_path: Path) -> None:
    assert set(library.paths()) == {path.stem for path in (ROOT / "scenarios").glob("*.toml")}
    assert loading.load(Path("quick")) == loading.load(ROOT / "scenarios" / "quick.toml")


def test_a_file_comes_before_a_packaged_scenario(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").write_text("seed = 7\n")
    assert loading.load(Path("quick")).seed == 7


def test_an_unknown_scenario_names_the_packaged_ones() -> None:
    with pytest.raises(InputError, match=r"demoo: cannot be read .*one of adapters, demo, leak, "):
        loading.load(Path("demoo"))


def test_an_installed_package_needs_the_name_of_an_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "docker-compose.yml").write_text((ROOT / "docker-compose.yml").read_text())
    monkeypatch.setenv(compose_project.FILE_VARIABLE, str(tmp_path / "docker-compose.yml"))
    monkeypatch.delenv(compose_project.IMAGE_VARIABLE, raising=False)
    with pytest.raises(InputError, match="UNWEFT_IMAGE: is not set"):
        compose_project.compose_file()
    monkeypatch.setenv(compose_project.IMAGE_VARIABLE, "unweft:1")
    assert not compose_project.can_build(compose_project.compose_file())


def test_the_repository_can_build_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compose_project.FILE_VARIABLE, raising=False)
    assert compose_project.can_build(compose_project.compose_file())


# -- the estimate of a run -----------------------------------------------------------------------------------
def small_estimate(**sections: object) -> tuple[Scenario, estimate.RunEstimate]:
    scenario = Scenario.model_validate({"devices": {"count": 3}, "round": {"count": 10}, **sections})
    return scenario, estimate.make(scenario, small_learner())


def test_the_estimate_counts_the_bytes_of_every_round() -> None:
    _, found = small_estimate(eval={"every": 0}, event=[{"round": 3, "kind": "leave", "device": "d2"}])
    # Rounds 0 to 3: each of three devices sends three blocks to two neighbours. Then two devices, two blocks.
    assert found.bytes_most == (4 * 3 * 2 * 3 + 6 * 2 * 1 * 2) * found.block_bytes
    assert (found.devices, found.device_rounds) == (3, 4 * 3 + 6 * 2)
    assert found.step_s > 0 and found.run_s > 0 and found.device_memory_bytes > 10_000_000


def test_no_device_is_estimated_to_send_more_than_its_budget() -> None:
    _, found = small_estimate(radio={"budget_bytes": 100})
    assert found.bytes_most == 10 * 3 * 100


def test_the_estimate_names_the_events_and_the_budget() -> None:
    scenario, found = small_estimate(event=[{"round": 3, "kind": "leave", "device": "d2"}])
    rows = dict(estimate_table.rows(scenario, found))
    assert rows["events"] == "round 3: leave d2" and "budget 4.0 MB" in rows["bytes"]


def test_a_dry_run_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert unweft(monkeypatch, "run", "quick", "--dry-run", "--out", tmp_path / "run") == 0
    assert "quick: the estimate" in capsys.readouterr().out and not (tmp_path / "run").exists()
