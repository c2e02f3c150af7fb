"""A leave that only ended a device is not recorded as a leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emulation.analysis import records
from emulation.analysis.effects import took_effect
from emulation.launch.run_state import RunState
from emulation.scenario.loading import load
from emulation.testbed import churn_log, reconstruction
from tests.support import synthetic_run
from tests.support.command_line import QUICK

LEAVE = {"round": 5, "kind": "leave", "device": "d1", "t_s": 10.0}
CRASH = {**LEAVE, "kind": "crash"}


def line(event: str, t_s: float) -> dict[str, object]:
    return {"event": event, "t_s": t_s}


@pytest.mark.parametrize(
    ("event", "records", "done"),
    [
        (LEAVE, [line("leaving", 10.0), line("finished", 10.2)], True),
        (LEAVE, [line("exported", 9.9), line("finished", 10.1)], False),
        (
            LEAVE,
            [line("leaving", 3.0), line("finished", 3.1), line("finished", 10.1)],
            False,
        ),  # a life before
        (LEAVE, [line("started", 0.0)], True),  # it was killed, and recorded nothing more
        (CRASH, [line("finished", 10.1)], True),
    ],
)
def test_a_departure_needs_the_record_that_the_device_was_leaving(
    event: dict[str, object], records: list[dict[str, object]], done: bool
) -> None:
    assert took_effect(event, records) is done


def test_the_launcher_lists_a_leave_after_the_last_round_as_not_done(tmp_path: Path) -> None:
    event = ["event=[{round = 5, kind = 'leave', device = 'd1'}]"]
    scenario = load(Path(QUICK), event)
    state = RunState(scenario=scenario, out=tmp_path, events=[dict(LEAVE)])
    (tmp_path / "devices" / "d1").mkdir(parents=True)
    lines = [line("exported", 9.0), line("finished", 10.5)]
    text = "".join(json.dumps(entry) + "\n" for entry in lines)
    (tmp_path / "devices" / "d1" / "events.jsonl").write_text(text, encoding="utf-8")
    state.withdraw_ineffective()
    assert not state.events and [(e.kind, e.device) for e in state.pending] == [("leave", "d1")]


def test_churn_records_no_leave_of_a_device_that_only_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = synthetic_run.write(tmp_path / "run")
    run = records.load(folder)
    run.events["d1"][:] = [{"life": 0, "round": 9, **line("finished", 50.0)}]
    (folder / churn_log.FILE).write_text(
        "".join(
            json.dumps({"kind": "leave", "device": device, "monotonic_ns": int(49e9)}) + "\n"
            for device in ("d1", "d2")
        )
    )
    run.events["d2"][:] = [{"life": 0, "round": 9, "kind": "leave", **line("leaving", 49.1)}]
    assert [event["device"] for event in reconstruction._logged(run, 0)] == ["d2"]
