"""Runs side by side, runs of many seeds, and tables as files."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from emulation.analysis import records, tables
from emulation.commands import run as run_command
from emulation.experiments import comparison_output
from emulation.experiments.run_comparison import (
    accuracy_curve,
    read,
    rows,
    scenario_differences,
    seed_folder,
    write_seeds,
)
from emulation.experiments.statistics import Interval
from emulation.scenario.loading import dump
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from tests.support.command_line import unweft
from tests.support.synthetic_run import write


def changed(folder: Path, accuracy: float, **keys: object) -> Path:
    """The synthetic run with another final accuracy and other keys of the scenario."""
    write(folder)
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    for line in lines:
        if line["tag"] == "end":
            line["accuracy"] = dict.fromkeys(line["accuracy"], accuracy)
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scenario = records.load(folder).scenario.model_copy(update=keys)
    (folder / "scenario.toml").write_text(dump(scenario))
    return folder


def many(folder: Path, accuracies: dict[int, float]) -> Path:
    for seed, accuracy in accuracies.items():
        changed(seed_folder(folder, seed), accuracy, seed=seed)
    return folder


# -- comparisons -----------------------------------------------------------------------------------------
def test_two_runs_have_a_difference(tmp_path: Path) -> None:
    subjects = [read(changed(tmp_path / "a", 0.5)), read(changed(tmp_path / "b", 0.75, clock="virtual"))]
    found = {row.measure: row for row in rows(subjects)}
    assert [m.mean for m in found["accuracy_all"].means if m] == [0.5, 0.75]
    assert found["accuracy_all"].differences[0] == Interval(0.25, None, None, 1)
    assert "leave d2 at 4: survivors corrected" in found and "join d3 at 7: joiner at the end" in found
    assert scenario_differences(subjects) == {"clock": ["real", "virtual"]}


def test_seeds_are_paired(tmp_path: Path) -> None:
    """The values of seeds differ by far more than the two ways; only pairs show the difference."""
    one = read(many(tmp_path / "a", {0: 0.2, 1: 0.5, 2: 0.8, 10: 0.9}))
    two = read(many(tmp_path / "b", {0: 0.25, 1: 0.56, 2: 0.84}))
    found = next(row for row in rows([one, two]) if row.measure == "accuracy_all")
    assert list(one.runs) == [0, 1, 2, 10]
    difference = found.differences[0]
    assert difference is not None and difference.n == 3 and difference.mean == pytest.approx(0.05)
    assert difference.low is not None and difference.low > 0  # excludes zero
    assert found.means[1] is not None and found.means[1].mean == pytest.approx(0.55)
    assert scenario_differences([one, two]) == {}


def test_the_curve_is_the_mean_over_devices(tmp_path: Path) -> None:
    curve = dict(accuracy_curve(records.load(write(tmp_path / "run"))))
    assert sorted(curve) == [*range(10)]
    assert curve[0] == pytest.approx((1.0 + 1.0 + 0.9) / 3) and curve[5] == 0.5


def test_the_command_prints_tables_and_writes_a_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    folders = changed(tmp_path / "a", 0.5), changed(tmp_path / "b", 0.75, clock="virtual")
    assert unweft(monkeypatch, "compare", *folders, "--plot", tmp_path / "c.png") == 0
    out = capsys.readouterr().out
    assert "75 % (+25 %)" in out and "virtual" in out
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("arguments", "words"), [(["a"], "is one folder"), (["a", "b"], "holds no run")])
def test_wrong_folders_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert unweft(monkeypatch, "compare", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_an_interval_is_shown_with_its_bounds() -> None:
    assert comparison_output.shown("accuracy_all", Interval(0.5, 0.4, 0.6, 3)) == "50 % \\[40, 60]"
    assert comparison_output.shown("loss", Interval(-0.5, None, None, 1), signed=True) == "-0.5"
    assert comparison_output.shown("sent_bytes", Interval(-2e6, None, None, 1), signed=True) == "-2.0 MB"


# -- many seeds ------------------------------------------------------------------------------------------
def test_a_run_of_many_seeds_is_in_one_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The runs themselves are replaced: real ones would start devices three times."""
    started = []

    def execute(scenario: Scenario, folder: Path, *others: object) -> int:
        started.append(scenario.seed)
        changed(folder, 0.5 + scenario.seed / 10, seed=scenario.seed)
        return 0

    monkeypatch.setattr(run_command, "execute", execute)
    out = tmp_path / "out"
    assert unweft(monkeypatch, "run", "quick", "--seed", 2, "--seeds", 3, "--out", out) == 0
    assert started == [2, 3, 4]
    found = json.loads((out / "seeds.json").read_text())["accuracy_all"]
    assert found["by_seed"] == pytest.approx({"2": 0.7, "3": 0.8, "4": 0.9})
    assert found["mean"] == pytest.approx(0.8) and found["low"] <= 0.8 <= found["high"]


def test_the_file_of_seeds_can_be_written_again(tmp_path: Path) -> None:
    subject = read(many(tmp_path / "a", {0: 0.2, 1: 0.5}))
    write_seeds(tmp_path / "a", subject)
    before = (tmp_path / "a" / "seeds.json").read_text()
    write_seeds(tmp_path / "a", read(tmp_path / "a"))
    assert (tmp_path / "a" / "seeds.json").read_text() == before


# -- tables as files -------------------------------------------------------------------------------------
def test_tables_are_written_as_csv(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = write(tmp_path / "run")
    assert unweft(monkeypatch, "export", folder) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in paths] == [f"{name}.csv" for name in tables.TABLES]
    with (folder / "tables" / "rounds.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert (lines[0]["device"], lines[0]["round"], lines[0]["loss"]) == ("d0", "0", "3.0")
    with (folder / "tables" / "events.csv").open(newline="") as file:
        assert json.loads(next(csv.DictReader(file))["survivors"]) == ["d0", "d1"]


def test_a_run_without_events_has_an_empty_table(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    (folder / "run.json").unlink()
    tables.write(folder, tmp_path / "out", "csv")
    assert (tmp_path / "out" / "events.csv").read_text().strip() == ""


@pytest.mark.skipif(
    find_spec("pyarrow") is None, reason="pyarrow is not installed; pip install 'unweft[tables]'"
)
def test_tables_are_written_as_parquet(tmp_path: Path) -> None:
    from pyarrow import parquet

    tables.write(write(tmp_path / "run"), tmp_path / "out", "parquet")
    first = parquet.read_table(tmp_path / "out" / "rounds.parquet").to_pylist()[0]
    assert (first["device"], first["round"], first["loss"]) == ("d0", 0, 3.0)


@pytest.mark.skipif(find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_without_pyarrow_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pyarrow is not installed; allowed: csv"):
        tables.write(write(tmp_path / "run"), tmp_path / "out", "parquet")


def test_every_row_of_a_table_has_the_same_keys(tmp_path: Path) -> None:
    from emulation.analysis import summary

    run = records.load(write(tmp_path / "run"))
    for name, table in tables.TABLES.items():
        found = table(run, summary.summarise(run))
        assert found and len({tuple(row) for row in found}) == 1, name
