"""`unweft run --on compose`: a scenario with its events, from the image to the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.containers import IMAGE, ROOT

SCENARIO = """
[devices]
count = 3
[data]
persons = 2
batch = 8
[adapter]
rank = 4
max_devices = 8
[round]
count = 160
local_steps = 3
[correction]
rounds = 3
[eval]
every = 5
[[event]]
round = 20
kind = "leave"
device = "d2"
[[event]]
round = 40
kind = "join"
device = "d3"
[[event]]
round = 90
kind = "stall"
device = "d1"
duration_s = 1.0
"""


def test_a_scenario_runs_in_containers_as_it_does_in_processes(
    tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    monkeypatch.setenv("UNWEFT_IMAGE", image)
    out = tmp_path / "run"
    code = "from emulation.cli import main; main()"
    given = ["run", str(tmp_path / "scenario.toml"), "--on", "compose", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "memory of a device" in done.stdout
    found = json.loads((out / "summary.json").read_text())
    told = [(event["kind"], event["device"]) for event in found["events"]]
    assert told == [("leave", "d2"), ("join", "d3"), ("stall", "d1")]
    assert found["accuracy"]["devices"] == ["d0", "d1", "d3"] and found["budget"]["violations"] == 0
    assert found["events"][0]["leaver_accuracy"]["deleted"] is not None
    assert found["events"][1]["detected_s"]["max"] is not None
    for link in found["links"]:
        if {link["src"], link["dst"]} <= {"d0", "d1"}:
            # at most a few control messages to one who has just finished: probes are not part of the goodbye
            assert 0 <= link["open_bytes"] <= 2000 < link["sent_bytes"] / 100
    assert not list(out.rglob("*.keys")) and not list(out.rglob("*.key"))
    left = subprocess.run(["docker", "ps", "-aq", "--filter", f"ancestor={IMAGE}"], capture_output=True)
    assert left.stdout == b""
