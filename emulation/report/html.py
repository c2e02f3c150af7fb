"""report.html, one page with all results of a run, and result.png, one picture of the run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from emulation.analysis import latency_histogram, records, summary
from emulation.analysis.records import Record, RunRecords
from emulation.report import plots, text
from emulation.report.formatting import megabytes, number, percent, plural
from emulation.scenario.loading import dump
from peers.radio_config import FIFO, RadioConfig

STAGES = ("before", "deleted", "corrected", "end")  # of an event


@dataclass(frozen=True)
class Picture:
    """A figure as a data: URI, with a text for readers who cannot see it."""

    uri: str
    alt: str


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
    """The page as HTML. Styles and pictures are inside, so the page refers to no other file."""
    environment = Environment(
        loader=PackageLoader("emulation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, megabytes=megabytes, number=number, plural=plural)
    counts = [link.get("latency_counts", {}) for link in found["links"]]
    bars = latency_histogram.bar_range(counts)
    return environment.get_template("report.html.j2").render(
        latencies=[latency_histogram.draw_bars(one, bars) for one in counts],
        latency_s=latency_histogram.bounds_s(bars),
        summary=found,
        run=run,
        heads=text.HEADS,
        rows=text.rows(found),
        stories=text.sentences(found),
        pictures=_pictures(run, found),
        scenario=dump(run.scenario),
        base=_main_settings(run),
        stages=STAGES,
    )


def _pictures(run: RunRecords, found: Record) -> dict[str, Picture | None]:
    events = "; ".join(f"{e['device']} {e['kind']} at round {e['round']}" for e in run.injected) or "none"
    has_rounds, final = any(run.metrics.values()), found["final"]
    return {
        "headline": _picture(
            plots.headline(run) if run.evaluations else None,
            f"Accuracy on each device's facts over rounds, mean over live devices. Events: {events}. "
            + " ".join(text.sentences(found)),
        ),
        "accuracy": _picture(
            plots.accuracy(run) if run.evaluations else None,
            f"One panel for each device's facts, one line for each device that answers. Events: {events}.",
        ),
        "budget": _picture(
            plots.budget(run) if has_rounds else None,
            "Bytes that each device spent in each round, beneath the budget of a round; "
            f"{plural(found['budget']['violations'], 'violation')}.",
        ),
        "contributions": _picture(
            plots.contributions(run) if has_rounds else None,
            "Norms of each block by layer group before and after each event; a dash where no block is held.",
        ),
        "matrix": _picture(
            plots.matrix(found),
            "At the end, each live device on each live device's facts; "
            f"mean {percent(final['accuracy_all'])}, worst {percent(final['accuracy_min'])}.",
        ),
    }


def _picture(figure: Figure | None, alt: str) -> Picture | None:
    return None if figure is None else Picture(plots.svg(figure), alt)


def _main_settings(run: RunRecords) -> list[tuple[str, str]]:
    """The main settings of the run, as (name, value)."""
    scenario = run.scenario
    return [
        ("model", scenario.model.name),
        ("data", scenario.data.kind),
        ("devices", f"{scenario.devices.count} at the start"),
        ("topology", scenario.topology.kind),
        ("mixing", scenario.mixing.mode),
        ("rounds", f"{scenario.round.count} of {scenario.round.local_steps} local steps"),
        (
            "budget",
            f"{megabytes(scenario.radio.budget_bytes)} a round and device, {_sent_as(scenario.radio)}",
        ),
        ("seed", str(scenario.seed)),
        ("took", f"{float(run.run.get('ended_s') or 0):.0f} s"),
    ]


def _sent_as(radio: RadioConfig) -> str:
    return radio.codec if radio.allocator == FIFO else f"{radio.allocator} of {', '.join(radio.codecs)}"
