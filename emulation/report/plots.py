"""result.png: one picture of a run for a slide or a README. The charts of the page are in charts.py."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from emulation.analysis.records import RunRecords
from emulation.report import series
from emulation.report.line_chart import MARKS_NAMED
from emulation.report.palette import colour, dashes
from emulation.scenario.events import GONE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 10.0  # inches
EVENT = "#555555"


def png(figure: Figure, path: Path) -> None:
    """Write the figure into a file, at 150 dpi."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    path.write_bytes(buffer.getvalue())


def headline(run: RunRecords) -> Figure:
    """For each shard, the mean accuracy over live devices, and a band down to the worst device."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    gone = {str(e["device"]) for e in run.injected if e["kind"] in GONE}
    for shard in series.shards(run):
        number = series.number(run, shard)
        curves = [series.accuracy(run, device, shard) for device in run.devices]
        mean, worst = series.over_devices(curves), series.over_devices(curves, min)
        rounds, shares, ink = [x for x, _ in mean], [y for _, y in mean], colour(number)
        width = 2.8 if shard in gone else 1.6
        axes.plot(rounds, shares, color=ink, linestyle=dashes(number), label=shard, linewidth=width)
        axes.fill_between(rounds, [y for _, y in worst], shares, color=ink, alpha=0.08, linewidth=0)
    _mark_events(axes, run)
    _share_axis(axes)
    axes.set_xlabel("round")
    axes.set_ylabel("facts answered correctly")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(title="facts of", loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _mark_events(axes: Axes, run: RunRecords) -> None:
    """Draw a vertical line at each event. Many events are fainter and have no names."""
    many = len(run.injected) > MARKS_NAMED
    for mark in series.marks(run):
        axes.axvline(mark.x, color=EVENT, linewidth=1, linestyle="--", alpha=0.25 if many else None)
        if not many:
            axes.annotate(
                mark.text,
                (mark.x, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, -3),
                textcoords="offset points",
                va="top",
                fontsize=8,
                color=EVENT,
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.7, "linewidth": 0},
            )


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.12)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="y", color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
