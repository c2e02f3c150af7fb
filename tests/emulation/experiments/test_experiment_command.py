"""The command `unweft experiment`: a whole small experiment, and input that is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from emulation.experiments import runner
from emulation.experiments.arms import BEFORE, ORACLE, UNIFORM


@pytest.mark.slow
@pytest.mark.timeout(400)  # eight runs in two processes that import torch, on a machine that may be loaded
def test_smoke_experiment_from_the_command_line(tmp_path: Path) -> None:
    main = "from emulation.cli import main; main()"
    options = [
        "experiment",
        "ablation",
        "--scale",
        "smoke",
        "--arms",
        "dominant,none",
        "--out",
        str(tmp_path),
    ]
    options += ["--seeds", "0,1", "--jobs", "2"]
    command = [sys.executable, "-c", main, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380)
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob(runner.DONE))]
    assert [(f["arm"], f["seed"]) for f in found] == [
        (arm, seed) for arm in (BEFORE.name, "dominant", ORACLE, UNIFORM) for seed in (0, 1)
    ]
    _, dominant, oracle, uniform = found[::2]
    assert dominant["decisions"] and not uniform["decisions"]
    assert dominant["prefix_sha256"] == uniform["prefix_sha256"]
    assert dominant["curve"][0].keys() == oracle["curve"][0].keys()
    assert dominant["curve"][0]["loss"] == uniform["curve"][0]["loss"]  # one checkpoint, branched
    kept = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*.safetensors")}
    assert kept == {("paper", BEFORE.name)}  # the checkpoint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "NAME: 'nothing' is no experiment; allowed: ablation, paper, regimes"),
        (["ablation", "--scale", "huge"], "--scale: 'huge' is not known"),
        (["allocation", "--arms", "best"], "--arms: 'best' is no arm; allowed: fifo, fifo-int8"),
        (["regimes", "--arms", "best"], "--arms: 'best' is no arm"),
        (["paper", "--arms", "consensus"], "--arms: 'consensus' is no arm of paper; allowed: dominant"),
        (["paper", "--arms", "paper,best"], "or a setting: paper-printed, paper"),
        (["regimes", "--seeds", "three"], "--seeds: 'three' names no seeds; allowed: a number of judging"),
        (["regimes", "--seeds", "5-3"], "--seeds: '5-3' names 0 seeds"),
        (
            ["paper", "--set", "adapter.rank.late=8"],
            "--set adapter.rank.late: a part of a key; allowed: the whole",
        ),
        (["regimes", "--set", "round.count=9"], "--set round.count: the experiment decides it"),
        (["regimes", "--set", "data.batch=0"], "--set: data.batch: 0 "),
        # The first cell of these would run: only a later arm is not possible.
        (
            ["baselines", "--scale", "smoke", "--set", "adapter.kind=vera"],
            "correction.ewc: '10.0' with adapter.kind = 'vera'",
        ),
        (
            ["baselines", "--scale", "smoke", "--arms", "influence", "--set", "adapter.kind=vera"],
            "adapter.kind: 'vera' with the arm 'influence'; allowed: another kind",
        ),
        (
            ["privacy", "--scale", "smoke", "--arms", "none", "--set", "adapter.kind=vera"],
            "--set adapter.kind: 'vera' with privacy, whose attack",
        ),
        (
            ["regimes", "--seeds", "0-9", "--publish", "d"],
            "--publish: 10 development seeds; allowed: at least",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from emulation import cli

    monkeypatch.setattr(sys, "argv", ["unweft", "experiment", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
