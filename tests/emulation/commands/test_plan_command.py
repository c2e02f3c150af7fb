"""`unweft plan`: the check, the plan, the files, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emulation.cli import main
from tests.support.synthetic_measurements import measurements


@pytest.fixture
def fitted(tmp_path: Path) -> Path:
    path = tmp_path / "measured.json"
    runs = [run.model_dump() for run in measurements((8, 12, 16, 24), noise=0.01)]
    path.write_text(json.dumps([{"title": "scale", "runs": runs}]))
    return path


def unweft(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["unweft", "plan", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_plan_is_shown_after_its_check_and_written(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, file = tmp_path / "plan.svg", tmp_path / "plan.json"
    options = ("--churn", 1e-5, "--budget", 10**9, "--latency", 0.01, "--plot", picture, "--json", file)
    assert unweft(monkeypatch, "--devices", 1000, "--devices", 100_000, "--fit", fitted, *options) == 0
    said = capsys.readouterr().out
    assert said.index("held-out") < said.index("1,000 devices, degree 4") < said.index("100,000 devices")
    assert "fitted to 16 runs of 8, 12, 16, 24 devices" in said
    assert "<svg" in picture.read_text()
    found = json.loads(file.read_text())
    small, large = found["plans"]
    assert (small["devices"], large["devices"]) == (1000, 100_000)
    assert (small["latency_s"], small["rate_Bps"]) == (0.01, 5e7)  # as given, and as measured
    by_title = {figure["title"]: figure for figure in small["figures"]}
    low, middle, high = by_title["rounds to 95 % of everyone's facts"]["estimate"]
    assert 0 < low < middle < high
    assert {check["devices"] for check in found["checks"]} == {24}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--devices", 1), "--devices: 1; allowed: numbers from 2 to 10000000"),
        (("--degree", 3), "--degree: 3; allowed: an even number of neighbours, 2 or more"),
        (("--churn", -1), "--churn: -1; allowed: 0 or more events a round"),
        (("--degree", "4" * 400), "4; allowed: an even number of neighbours, 2 or more, up to 10000000"),
        (("--budget", 0), "--budget: 0; allowed: 1 or more, up to 1000000000000000"),
        (("--budget", "4" * 400), "4; allowed: 1 or more, up to 1000000000000000"),
        (("--local-steps", 0), "--local-steps: 0; allowed: 1 or more, up to 1000000000000000"),
        (("--local-steps", "4" * 400), "4; allowed: 1 or more, up to 1000000000000000"),
        (("--rate", 0), "--rate: 0; allowed: numbers from 1e-09 to 1000000000000000"),
        (("--hold-out", 9), "--hold-out: 9 was not measured; allowed: 8, 12, 16, 24"),
        (("--plot", "plan.txt"), "--plot: plan.txt is no name of a picture; allowed: .png, .svg, .pdf"),
        (("--json", "/nowhere/x.json"), "--json: there is no folder /nowhere"),
        (("--json", "/tmp"), "--json: /tmp is a folder; allowed: the name of a file"),
        (("--plot", "/tmp"), "--plot: /tmp is a folder; allowed: the name of a file"),
    ],
)
def test_bad_input_is_refused(
    options: tuple[object, ...],
    said: str,
    fitted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    devices = () if options[0] == "--devices" else ("--devices", 1000)
    assert unweft(monkeypatch, *devices, "--fit", fitted, *options) == 2
    assert said in capsys.readouterr().err
