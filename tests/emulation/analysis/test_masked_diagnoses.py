"""What masks have cost, in the summary of a run and in its sentences."""

from __future__ import annotations

import json
from pathlib import Path

from emulation.analysis import summary
from emulation.report import text
from emulation.scenario.loading import dump, load
from tests.support import synthetic_run


def test_lost_diagnoses_of_a_masked_run_are_counted(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run")
    plain = summary.build(folder)
    assert "masked" not in plain and not any("masked" in line for line in text.sentences(plain))

    masked = ["correction.policy='dominant'", "correction.masked=true"]
    (folder / "scenario.toml").write_text(dump(load(folder / "scenario.toml", masked)))
    for device, events in {"d0": ["decision", "undecided", "clipped"], "d1": ["undecided"]}.items():
        with (folder / "devices" / device / "events.jsonl").open("a") as file:
            lines = ({"t_s": 9.0, "round": 9, "event": event} for event in events)
            file.writelines(json.dumps(line) + "\n" for line in lines)
    found = summary.build(folder)
    assert found["masked"] == {"decided": 1, "lost": 2, "clipped": 1}
    assert (
        "masked reports: 2 of 3 decisions of all devices could not be made; values of 1 report were clipped"
        in text.sentences(found)
    )
