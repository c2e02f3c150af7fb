"""report.html, one page with all results of a run, and result.png, one picture of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from emulation.analysis import records, summary
from emulation.analysis.records import Record, RunRecords
from emulation.report import (
    charts,
    graph_picture,
    moments,
    palette,
    plots,
    report_tables,
    series,
    text,
    timeline,
)
from emulation.report.formatting import megabytes, percent, plural
from emulation.report.receipts import STAGES, receipts
from emulation.scenario.loading import dump
from peers.radio_config import FIFO, RadioConfig

LOADER = PackageLoader("emulation.report")
OPEN_LINKS = 12  # with more links, their table is closed at first


def write(folder: Path) -> Path:
    """Write report.html and result.png into a run's folder; returns the page's path.

    Reads summary.json, or builds it if it is missing. Raises InputError if the folder holds no run.
    """
    run = records.load(folder)
    path = folder / "summary.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else summary.write(folder)
    page = folder / "report.html"
    records.write_whole(page, render(run, found))
    if run.evaluations:
        plots.png(plots.headline(run), folder / "result.png")
    return page


def render(run: RunRecords, found: Record) -> str:
    """The page as HTML. Styles, scripts and charts are inside, so the page refers to no other file."""
    environment = Environment(
        loader=LOADER, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, megabytes=megabytes, plural=plural)
    return environment.get_template("report.html.j2").render(
        **_tables(run, found),
        charts=charts.all_charts(run, found),
        timeline=timeline.draw(run),
        graphs=_graphs(run),
        receipts=receipts(run, found),
        summary=found,
        folder=run.folder.name,
        stories=text.sentences(found),
        scenario=dump(run.scenario),
        base=_main_settings(run),
        open_links=len(found["links"]) <= OPEN_LINKS,
        style=Markup(palette.css() + _source("report.css")),
        script=Markup(_source("report.js")),
    )


def _source(name: str) -> str:
    return LOADER.get_source(Environment(), name)[0]


def _tables(run: RunRecords, found: Record) -> dict[str, Any]:
    around = [
        f(event, STAGES) for event in found["events"] for f in (report_tables.metrics, report_tables.answers)
    ]
    return {
        "result": report_tables.result(found),
        "matrix": report_tables.accuracy(found),
        "events": report_tables.events(found),
        "norms": report_tables.norms(run),
        "around": [table for table in around if table],
        "decisions": report_tables.decisions(series.decisions(run)),
        "links": report_tables.links(found),
        "devices": report_tables.devices(found),
    }


def _graphs(run: RunRecords) -> list[graph_picture.Picture]:
    """The learning graph before and after each of the first events."""
    return [
        graph_picture.picture(title, run.devices, moment.devices, moments.graph(run, moment))
        for title, moment in moments.moments(run)
        if moments.graph(run, moment)
    ]


def _main_settings(run: RunRecords) -> list[tuple[str, str]]:
    """The main settings of the run, as (name, value)."""
    scenario = run.scenario
    return [
        ("model", scenario.model.name),
        ("data", scenario.data.kind),
        ("devices", f"{scenario.devices.count} at the start"),
        ("topology", scenario.topology.kind),
        ("mixing", scenario.mixing.mode),
        ("correction", scenario.correction.policy),
        ("rounds", f"{scenario.round.count} of {scenario.round.local_steps} local steps"),
        (
            "budget",
            f"{megabytes(scenario.radio.budget_bytes)} a round and device, {_sent_as(scenario.radio)}",
        ),
        ("clock", scenario.clock),
        ("seed", str(scenario.seed)),
        ("took", f"{float(run.run.get('ended_s') or 0):.0f} s"),
    ]


def _sent_as(radio: RadioConfig) -> str:
    return radio.codec if radio.allocator == FIFO else f"{radio.allocator} of {', '.join(radio.codecs)}"
