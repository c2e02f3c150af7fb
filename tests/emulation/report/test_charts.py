"""The charts of a run with a correction policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emulation.analysis import records, summary
from emulation.report import charts, html, report_tables, series, timeline
from emulation.report.line_chart import Drawn
from tests.support import synthetic_run

ACTION = {"steps": 2, "prox": 0.0, "gamma": 1.0, "period": 1, "rung": 0}


def decision(epoch: int, steps: int, local: float) -> dict[str, Any]:
    residuals = {"local": local, "consensus": 1.0, "heterogeneity": 0.1, "p": 0.75}
    settings = {"groups": {"early": {**ACTION, "steps": steps}}, "residuals": {"early": residuals}}
    return {
        "t_s": 6.0,
        "round": epoch + 1,
        "event": "decision",
        "epoch": epoch,
        "reason": "a -> b",
        **settings,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The run of synthetic_run. d0 and d1 decide alike after round 5, and differently after round 7."""
    folder = synthetic_run.write(tmp_path / "run")
    for number, device in enumerate(("d0", "d1")):
        path = folder / "devices" / device / "events.jsonl"
        made = [decision(5, 2, 50.0), decision(7, 2 + number, 10.0)]
        path.write_text(path.read_text() + "".join(json.dumps(d) + "\n" for d in made))
        path = folder / "devices" / device / "metrics.jsonl"
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        for line in lines:
            line["sent"] = {"late": {"fp16": 3}, "early": {"int8": 2}}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def drawn(folder: Path) -> dict[str, list[Drawn]]:
    return charts.all_charts(records.load(folder), summary.build(folder))


def test_residuals_and_priorities_over_rounds(folder: Path) -> None:
    residuals, priorities = drawn(folder)["correction"]
    assert residuals.title == "Residuals of early"
    assert residuals.stops[0].text == "round 5\nR_loc: 50\nR_con: 1\nR_het: 0.1"
    assert priorities.stops[1].text.startswith("round 7\nearly: 75 %")


def test_decisions_that_differ_are_counted(folder: Path) -> None:
    found = series.decisions(records.load(folder))
    assert [(d["epoch"], d["differ"]) for d in found] == [(5, 0), (7, 1)]
    table = report_tables.decisions(found)
    assert table is not None
    assert table.rows[0] == ("5", "n 2, λ 0, γ 1, H 1, rung 0", "0", "a → b")


def test_codecs_by_group_in_the_order_of_the_layers(folder: Path) -> None:
    found = drawn(folder)["codecs"]
    assert [chart.title for chart in found] == ["Matrices of early sent", "Matrices of late sent"]
    assert found[1].stops[0].text == "round 0\nfp16: 6"


def test_a_run_without_decisions_has_no_such_section(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run")
    assert drawn(folder)["correction"] == []
    assert 'id="correction"' not in html.write(folder).read_text()


def test_the_timeline_says_who_trained_and_who_waited(folder: Path) -> None:
    """A round lasts one second: half a second of local steps, then a wait."""
    found = timeline.draw(records.load(folder))
    assert found is not None and [t.text for t in found.y_ticks] == ["d0", "d1", "d2", "d3"]
    assert found.stops[0].text.split("\n")[1:] == [
        "d0: round 0, local steps",
        "d1: round 0, local steps",
        "d2: round 0, local steps",
        "d3: not in a round",
    ]
    assert "d0: round 0, waits for neighbours" in found.stops[9].text
    assert [shape.path.count("Z") for shape in found.shapes[:2]] == [10, 10]


def test_answers_and_metrics_of_an_event_are_tables() -> None:
    rows = [{"shard": "d2", "prompt": "Who?", "expected": "Ann", "answers": {"before": "Ann", "end": "Bob"}}]
    event = {"device": "d2", "kind": "leave", "round": 4, "survivors": ["d0"], "answers": rows}
    stages = {"before": "before", "deleted": "after", "end": "end"}
    found = report_tables.answers(event, stages)
    assert found is not None and found.rows == [("d2", "Who?", "Ann", "Ann", "Bob")]
    event["metrics"] = {"rouge": {"device": {"before": 0.9}, "survivors": {}}}
    measured = report_tables.metrics(event, stages)
    assert measured is not None and measured.rows == [("rouge", "d2", "0.900")]
    assert list(measured.heads) == ["metric", "data of", "before"]  # stages without a value have no column
