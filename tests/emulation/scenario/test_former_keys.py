"""Former spellings of scenario keys: they work, one line warns, and a run writes the current ones."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from emulation import cli
from emulation.scenario import former_keys
from emulation.scenario.loading import dump, load, read
from peers.errors import InputError

FORMER = "[correction]\nhandover = 0.4\nrepay = false\n"
CURRENT = "[correction]\nrefit = 0.4\noffset_overhead = false\n"


@pytest.fixture(autouse=True)
def every_line_is_new() -> None:
    former_keys._warn_once.cache_clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "s.toml"


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err.splitlines()


@pytest.mark.parametrize("reader", [load, read])
def test_a_file_in_the_former_spelling_loads_with_one_warning(
    reader: object, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text('name = "s"\n' + CURRENT)
    current = reader(file)  # type: ignore[operator]
    assert warnings(capsys) == []
    file.write_text('name = "s"\n' + FORMER)
    assert reader(file) == reader(file) == current  # type: ignore[operator]
    (line,) = warnings(capsys)
    assert "correction.handover is now correction.refit" in line
    assert "correction.repay is now correction.offset_overhead" in line and str(file) in line


@pytest.mark.parametrize("override", ["correction.handover=0.4", "correction={handover=0.4}"])
def test_an_override_in_the_former_spelling(
    override: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("")
    assert load(file, [override]).correction.refit == 0.4
    (line,) = warnings(capsys)
    assert "correction.handover is now correction.refit" in line and "repay" not in line


@pytest.mark.parametrize("text", [FORMER, CURRENT])
@pytest.mark.parametrize("override", ["correction.handover=0.1", "correction.refit=0.1"])
def test_an_override_replaces_the_value_of_the_file_in_either_spelling(
    text: str, override: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    assert load(file, [override]).correction.refit == 0.1
    assert len(warnings(capsys)) == (text == FORMER or "handover" in override)


def test_both_spellings_in_a_file_are_refused(file: Path) -> None:
    file.write_text("[correction]\nhandover = 0.4\nrefit = 0.4\n")
    for reader in (load, read):
        with pytest.raises(InputError, match=r"s\.toml: correction\.refit: .*correction\.handover; allowed"):
            reader(file)


@pytest.mark.parametrize(
    "overrides",
    [["correction.repay=true", "correction.offset_overhead=true"], ["correction={handover=0.1, refit=0.1}"]],
)
def test_both_spellings_in_overrides_are_refused(overrides: list[str], file: Path) -> None:
    file.write_text("")
    with pytest.raises(InputError, match="--set: correction"):
        load(file, overrides)


def test_a_value_that_is_not_allowed_is_named_by_the_current_key(file: Path) -> None:
    file.write_text("")
    with pytest.raises(InputError, match=r"--set: correction\.refit: 7"):
        load(file, ["correction.handover=7"])


def test_the_resolved_scenario_has_the_current_spelling(file: Path) -> None:
    file.write_text(FORMER)
    written = tomllib.loads(dump(load(file)))["correction"]
    assert written["refit"] == 0.4 and written["offset_overhead"] is False
    assert not {"handover", "repay"} & written.keys()


def test_the_command_line_refuses_both_spellings(file: Path, tmp_path: Path) -> None:
    file.write_text("")
    both = ["--set", "correction.handover=0.1", "--set", "correction.refit=0.1"]
    run = CliRunner().invoke(cli.app, ["run", str(file), *both, "--out", str(tmp_path / "out")])
    assert isinstance(run.exception, InputError) and not (tmp_path / "out").exists()
