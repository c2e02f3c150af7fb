"""A device that fails records its exception, which the launcher and the report name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emulation.analysis import records
from emulation.report import text
from peers.config import DeviceConfig
from peers.runtime import main
from peers.runtime.spec import DeviceSpec


def test_the_reason_is_the_exception_and_not_the_last_line_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(*_: Any) -> int:
        raise RuntimeError("train: loss is nan\nin round 3")

    monkeypatch.setattr(main, "_run", run)
    address = "tcp://127.0.0.1:1"
    spec = DeviceSpec("d0", DeviceConfig(), address, address, (), str(tmp_path))
    with pytest.raises(RuntimeError):
        main.run_device(spec)
    folder = tmp_path / "devices" / "d0"
    (folder / "log.txt").write_text("Traceback …\n[W] a warning of a library at exit\n")
    assert records.failure(folder) == "RuntimeError: train: loss is nan in round 3"
    (line,) = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert line["event"] == "failed" and line["round"] == -1


def test_a_device_without_a_record_has_no_reason(tmp_path: Path) -> None:
    assert records.failure(tmp_path) is None


def test_the_report_names_the_reason() -> None:
    final = dict.fromkeys(("accuracy_all", "accuracy_min", "loss"))
    budget = dict.fromkeys(("spent_bytes", "granted_bytes", "violations"), 0)
    devices = [{"id": "d0", "failure": None}, {"id": "d1", "failure": "OSError: no space"}]
    forgotten = {"unconfirmed_leaves": [], "forgotten": {"corrected": [], "holding": []}}
    summary = {"events": [], "devices": devices, "final": final, "budget": budget, "unfinished": True}
    summary |= forgotten
    assert "d1 failed: OSError: no space" in text.sentences(summary)
