"""A whole run with masked reports: it makes the decisions, and has the adapters, of the run without masks."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.virtual_runs import run_in_one_process

MEASURED = (  # after the leave in round 2 three devices are left, which measure twice
    *("--set", "devices.count=4", "--set", 'event=[{round=2, kind="leave", device="d3"}]'),
    *("--set", "round.count=14", "--set", "correction.rounds=10", "--set", "correction.period=4"),
    *("--set", "correction.policy=dominant", "--set", "correction.offset_overhead=false"),
    *("--set", "eval.every=0"),
)


def decisions(out: Path) -> list[dict[str, object]]:
    """The decisions of d0, without what depends on the sum's last bits or on the clock."""
    lines = map(json.loads, (out / "devices" / "d0" / "events.jsonl").read_text().splitlines())
    names = ("epoch", "groups", "reason", "missing")
    return [{name: line[name] for name in names} for line in lines if line["event"] == "decision"]


def test_masks_change_no_decision_and_no_adapter(tmp_path: Path) -> None:
    """It starts the devices twice: only a whole run measures real gradients and draws real keys."""
    plain = run_in_one_process(tmp_path / "plain", *MEASURED)
    masked = run_in_one_process(tmp_path / "masked", *MEASURED, "--set", "correction.masked=true")
    assert len(decisions(tmp_path / "plain")) == 2
    assert decisions(tmp_path / "masked") == decisions(tmp_path / "plain")
    hashes = [[device["adapter_sha256"] for device in run["devices"]] for run in (plain, masked)]
    assert hashes[0] == hashes[1] and all(hashes[0][:3])
    assert masked["masked"] == {"decided": 6, "lost": 0, "clipped": 0}
    assert "masked" not in plain
