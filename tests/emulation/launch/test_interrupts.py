"""An interrupted run: its devices export the last closed round, and nothing is left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from peers.lora.bases import Recipe
from tests.support.command_line import pid_in_round, quick_run
from tests.support.exported_accuracy import assert_as_evaluated
from tests.support.learners import same

pytestmark = pytest.mark.timeout(400)  # processes import torch on a machine that may be loaded
PATIENCE_S = 150
LONG = ("--set", "round.count=5000", "--set", "event=[]")
RANDOM = random.Random(15)
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def take_signals() -> None:
    """As in a terminal; nohup ignores SIGHUP, and a shell's background job SIGINT."""
    for number in STATUS:
        signal.signal(number, signal.SIG_DFL)


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    """`unweft run`, with temporary files in a folder of its own."""
    temporary = out.with_name(f"{out.name}-tmp")
    temporary.mkdir()
    return subprocess.Popen(
        quick_run(out, *LONG, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,
        preexec_fn=take_signals,
    )


def children(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(launcher.pid).children(recursive=True)


def assert_nothing_left(out: Path, processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
    temporary = out.with_name(f"{out.name}-tmp")
    assert [path for path in temporary.iterdir() if not path.name.startswith("torchinductor")] == []


def snapshots(out: Path, device: str) -> dict[str, Path]:
    """Snapshots of a device by `ROUND-TAG`, those that were evaluated included."""
    places = (out / "snapshots" / device, out / "devices" / device / "snapshots")
    return {path.stem: path for place in places for path in place.glob("*.safetensors")}


def values(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).sort().values


def assert_the_last_closed_round_is_exported(out: Path, device: str) -> None:
    """The `end` snapshot and the adapter are the state of the last closed round, bit for bit."""
    lines = (out / "devices" / device / "metrics.jsonl").read_text().splitlines()
    last = int(json.loads(lines[-1])["round"])
    found = snapshots(out, device)
    end = load_file(found[f"{last:05d}-end"])
    assert same(end, load_file(found[f"{last:05d}-round"]))
    adapter = out / "adapters" / device
    exported = load_file(adapter / "adapter_model.safetensors")
    scale = Recipe.from_dict(json.loads((adapter / "unweft.json").read_text())["recipe"]).scale
    b = [tensor for name, tensor in exported.items() if "lora_B" in name]
    assert torch.equal(values(b), values([scale * tensor for tensor in end.values()]))


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGHUP)),
    ],
)
def test_an_interrupted_run_exports_the_last_closed_round(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    options = ("--set", "round.local_steps=40", "--set", "eval.every=1")
    with start(out, *options) as launcher:
        pid_in_round(out, "d1")
        (out / "snapshots").mkdir()  # snapshots that were evaluated are kept there
        until = time.monotonic() + PATIENCE_S
        while len((out / "devices" / "d1" / "metrics.jsonl").read_text().splitlines()) < 4:
            assert time.monotonic() < until
            time.sleep(0.05)
        processes = children(launcher)
        launcher.send_signal(number)
        _, error = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == STATUS[number]
    kept = f"{out} is kept, with all records and the adapters that were exported"
    lines = [
        line for line in error.splitlines() if not line.startswith("unweft: note: ")
    ]  # of a slow machine
    then = f"its report: unweft report {out}; to go on: unweft run --resume {out}"
    assert lines == [f"unweft: interrupted by {number.name}; {kept}; {then}"]
    assert_nothing_left(out, processes)
    for device in ("d0", "d1", "d2"):
        assert_the_last_closed_round_is_exported(out, device)
    assert_as_evaluated(out, ["d0", "d1", "d2"])
    run = json.loads((out / "run.json").read_text())
    assert {device["exit"] for device in run["devices"].values()} == {0}
    summary = json.loads((out / "summary.json").read_text())
    assert all(device["adapter_sha256"] for device in summary["devices"])


def interrupt_later(tmp_path: Path, delay_s: float, times: int) -> None:
    out = tmp_path / "run"
    with start(out) as launcher:
        time.sleep(delay_s)
        processes = children(launcher)
        for _ in range(times):
            if launcher.poll() is None:
                launcher.send_signal(signal.SIGINT)
            time.sleep(0.05)
        try:
            _, error = launcher.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(launcher.pid, signal.SIGKILL)
            raise
    assert launcher.returncode == 130, error
    assert error.startswith("unweft: interrupted by SIGINT; ") and error.count("\n") == 1, error
    if out.exists():
        assert f"{out} is kept" in error and (out / "run.json").exists()
        assert not (out / ".claim").exists()
    else:
        assert error.endswith("; nothing was written\n")
    assert_nothing_left(out, processes)


@pytest.mark.parametrize("delay_s", [round(RANDOM.uniform(0.3, 12.0), 2) for _ in range(8)])
def test_an_interrupt_at_any_moment_is_one_line(tmp_path: Path, delay_s: float) -> None:
    interrupt_later(tmp_path, delay_s, times=1)


@pytest.mark.parametrize("delay_s", [1.0, 8.0])
def test_four_interrupts_in_a_row_are_one_line(tmp_path: Path, delay_s: float) -> None:
    interrupt_later(tmp_path, delay_s, times=4)
