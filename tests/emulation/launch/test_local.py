"""Whole runs through the command line: real processes and sockets, and no process left afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.support.command_line import pid_in_round, quick_run
from tests.support.tiny_models import WORDS, save_small_model

# Each test starts several processes that import torch: a loaded machine needs more than the usual minute.
pytestmark = pytest.mark.timeout(240)


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_bytes_of_a_run_balance_and_the_leaver_is_deleted(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = subprocess.run(quick_run(out), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["schema"] == 1
    assert summary["budget"]["violations"] == 0
    live = {d["id"] for d in summary["devices"] if d["adapter_sha256"]}
    assert live == {"d0", "d1"}
    for link in summary["links"]:
        if {link["src"], link["dst"]} <= live:
            assert link["sent_bytes"] == link["received_bytes"] + sum(link["dropped_bytes"].values())
    about = json.loads((out / "adapters" / "d0" / "unweft.json").read_text())
    assert [b["device"] for b in about["blocks"]] == ["d0", "d1"]
    receipts = (out / "devices" / "d0" / "events.jsonl").read_text()
    assert '"event": "deleted", "peer": "d2"' in receipts
    assert (out / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_launcher(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    launcher = subprocess.Popen(
        quick_run(out, "--set", "round.count=5000"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        pid_in_round(out, "d1")
        children = [c.pid for c in psutil.Process(launcher.pid).children(recursive=True)]
        launcher.send_signal(number)
        assert launcher.wait(60) == (130 if number == signal.SIGINT else -signal.SIGKILL)
        assert gone(children)
    finally:
        launcher.kill()
        launcher.wait()


def test_a_killed_device_does_not_stop_the_others(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--set", "round.count=40", "--set", "devices.count=4", "--set", "membership.crash_after_s=2.0")
    with subprocess.Popen(quick_run(out, *options), stdout=subprocess.DEVNULL) as launcher:
        os.kill(pid_in_round(out, "d1"), signal.SIGKILL)
        assert launcher.wait(200) == 0
    summary = json.loads((out / "summary.json").read_text())
    rounds = {d["id"]: d["rounds"] for d in summary["devices"]}
    assert rounds["d0"] == rounds["d3"] == 40
    assert any(e["kind"] == "crash" and e["device"] == "d1" for e in summary["events"])


def test_a_local_qwen2_folder_learns_from_jsonl(tmp_path: Path) -> None:
    model = save_small_model(tmp_path / "qwen2", "qwen2")
    data = tmp_path / "data"
    data.mkdir()
    for device in ("d0", "d1", "d2"):
        rows = [{"prompt": f"{device} asks {i}", "response": WORDS[i % 2]} for i in range(6)]
        (data / f"{device}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    options = [f"model.name={model}", "data.kind=jsonl", f"data.path={data}", "adapter.rank=2"]
    done = subprocess.run(
        quick_run(out, *(word for option in options for word in ("--set", option))),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads((out / "summary.json").read_text())["final"]["accuracy_all"] is not None
