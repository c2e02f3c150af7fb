"""A run with privacy. It starts devices: an account must last over the processes of a device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emulation.report import report_tables, text
from tests.support.virtual_runs import run_in_one_process

pytest.importorskip("dp_accounting")

RETURN = "[{round=1, kind='crash', device='d1'}, {round=3, kind='return', device='d1'}]"
OPTIONS = (
    *("devices.count=2", f"event={RETURN}", "round.count=12", "round.local_steps=1", "eval.every=0"),
    *("data.persons=1", "data.batch=1", "adapter.rank=1", "privacy.noise=2", "privacy.delta=0.01"),
    "membership.crash_after_s=0.1",
)


def lines(out: Path, device: str) -> list[dict[str, float]]:
    return [json.loads(x) for x in (out / "devices" / device / "metrics.jsonl").read_text().splitlines()]


def test_epsilon_is_in_the_records_and_goes_on_after_a_return(tmp_path: Path) -> None:
    run_in_one_process(tmp_path, *OPTIONS)
    found = lines(tmp_path, "d1")
    assert {line["life"] for line in found} == {0, 1}
    spent = [line["epsilon"] for line in found]
    assert spent == sorted(spent) and 0 < spent[0] < spent[-1]
    booked = json.loads((tmp_path / "devices" / "d1" / "privacy.json").read_text())
    assert booked["spent"][0][2] >= len(found)  # the round in which it crashed was booked too
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["privacy"]["epsilon"] == {
        "d0": lines(tmp_path, "d0")[-1]["epsilon"],
        "d1": booked["epsilon"],
    }
    assert any(
        s.startswith("privacy: a device has spent at most epsilon = ") for s in text.sentences(summary)
    )
    shown = report_tables.devices(summary)
    assert shown.heads[7] == "epsilon at delta 0.01"
    assert [row[7] for row in shown.rows] == [f"{e:.2f}" for e in summary["privacy"]["epsilon"].values()]
