"""Every record of a device has the number of its life."""

from __future__ import annotations

import json
from pathlib import Path

from peers.runtime.recorder import Recorder, next_life


def live(folder: Path, events: int) -> int:
    recorder = Recorder(folder, 0, life := next_life(folder))
    for _ in range(events):
        recorder.event(0, -1, "started", {})
    recorder.metrics({"round": 0})
    recorder.close()
    return life


def test_each_life_in_a_folder_has_the_next_number(tmp_path: Path) -> None:
    assert [live(tmp_path, events) for events in (1, 0, 2)] == [0, 1, 2]
    for name, lives in (("events.jsonl", [0, 2, 2]), ("metrics.jsonl", [0, 1, 2])):
        lines = (tmp_path / name).read_text().splitlines()
        assert [json.loads(line)["life"] for line in lines] == lives


def test_records_of_older_versions_count_by_their_starts(tmp_path: Path) -> None:
    start = json.dumps({"t_s": 0.0, "event": "started"}) + "\n"
    (tmp_path / "events.jsonl").write_text(start + start + '{"t_s": 1, "eve')
    assert next_life(tmp_path) == 2
