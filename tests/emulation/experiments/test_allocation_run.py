"""A whole run with an allocator."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from emulation.analysis.records import read_lines
from emulation.bench.clock import repeatable
from tests.support.command_line import quick_run

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]
TIGHT = ("--set", "radio.budget_bytes=30000", "--set", "radio.allocator=residual")


def run(out: Path) -> dict[str, Any]:
    done = subprocess.run(
        quick_run(out, "--clock", "virtual", *TIGHT), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return repeatable(json.loads((out / "summary.json").read_text()))


def test_a_tight_run_keeps_its_budget_and_is_the_same_twice(tmp_path: Path) -> None:
    first = run(tmp_path / "first")
    assert first["budget"]["violations"] == 0
    assert 0 < first["budget"]["spent_bytes"] <= first["budget"]["granted_bytes"]
    lines = read_lines(tmp_path / "first" / "devices" / "d0" / "metrics.jsonl")
    codecs = {codec for line in lines for sent in line["sent"].values() for codec in sent}
    assert codecs >= {"int4", "int8"} and codecs <= {"fp16", "int8", "int4"}
    assert any(line["withheld"] for line in lines)
    assert any(device["adapter_sha256"] for device in first["devices"])
    assert first == run(tmp_path / "second")
