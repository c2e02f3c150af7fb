"""The pictures of a report, made from a run's records. Each public function makes one figure."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from emulation.analysis.event_outcomes import injected_events
from emulation.analysis.records import Record, RunRecords, in_order
from emulation.scenario.events import ARRIVALS, GONE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7f3c8d", "#555555")
MARKS = {
    "leave": "#b00020",
    "retire": "#b06a00",
    "crash": "#b00020",
    "stall": "#777777",
    "join": "#1b7a2f",
    "return": "#1b7a2f",
    "partition": "#777777",
    "heal": "#777777",
}
WIDTH = 10.0  # inches
PANELS = 24  # shards and blocks at most in one figure
SHOWN_EVENTS = 6  # events at most for which contributions are shown
NAMED = 16  # a picture with more events shows no names of events


def colour(device: str, devices: list[str]) -> str:
    """The colour of a device, the same in every picture."""
    return COLOURS[devices.index(device) % len(COLOURS)]


def svg(figure: Figure) -> str:
    """The figure as a data: URI, so that a page needs no other file."""
    return "data:image/svg+xml;base64," + base64.b64encode(_saved(figure, "svg")).decode()


def png(figure: Figure, path: Path) -> None:
    """Write the figure into a file, at 150 dpi."""
    path.write_bytes(_saved(figure, "png"))


def _saved(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}  # equal runs give equal files
    with rc_context({"svg.hashsalt": "unweft"}):
        figure.savefig(buffer, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


# -- accuracy --------------------------------------------------------------------------------------------
def accuracy(run: RunRecords) -> Figure:
    """One panel for each shard, one line for each device; vertical lines are events."""
    all_shards = in_order({s for e in run.evaluations for s in e["accuracy"]})
    shards = all_shards[:PANELS]
    columns = min(4, max(1, len(shards)))
    rows = -(-len(shards) // columns) or 1
    figure = Figure(figsize=(WIDTH, 1.2 + 2.1 * rows), layout="constrained")
    panels = list(np.ravel(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)))
    for panel in panels[len(shards) :]:
        panel.set_visible(False)
    for number, (panel, shard) in enumerate(zip(panels, shards, strict=False)):
        for device in run.devices:
            points = _curve(run, device, shard)
            own = {"linewidth": 2.6, "zorder": 3} if device == shard else {"linewidth": 1.1, "alpha": 0.85}
            panel.plot(*_split(points), color=colour(device, run.devices), label=device, **own)
        panel.set_title(f"facts of {shard}", fontsize=10)
        mark_events(panel, run, named=number < columns)
        _share_axis(panel)
    for panel in panels[max(0, len(shards) - columns) : len(shards)]:
        panel.set_xlabel("round")
        panel.tick_params(labelbottom=True)
    if shards != all_shards:
        figure.suptitle(f"the first {len(shards)} of {len(all_shards)} shards", fontsize=10)
    _legend(figure, panels[:1], "device")
    return figure


def headline(run: RunRecords) -> Figure:
    """For each shard, the mean accuracy over live devices, and a band down to the worst device."""
    shards = in_order({s for e in run.evaluations for s in e["accuracy"]})
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    gone = {str(e["device"]) for e in run.injected if e["kind"] in GONE}
    for shard in shards:
        by_round: dict[float, list[float]] = {}
        for device in run.devices:
            for at, share in _curve(run, device, shard):
                by_round.setdefault(at, []).append(share)
        rounds = sorted(by_round)
        ink = colour(shard, run.devices) if shard in run.devices else "#555555"
        mean = [float(np.mean(by_round[r])) for r in rounds]
        axes.plot(rounds, mean, color=ink, label=shard, linewidth=2.8 if shard in gone else 1.6)
        axes.fill_between(
            rounds, [min(by_round[r]) for r in rounds], mean, color=ink, alpha=0.10, linewidth=0
        )
    mark_events(axes, run, named=True)
    _share_axis(axes)
    axes.set_xlabel("round")
    axes.set_ylabel("facts answered correctly")
    _legend(figure, [axes], "facts of")
    return figure


def _curve(run: RunRecords, device: str, shard: str) -> list[tuple[float, float]]:
    """Points (round, accuracy) of one device on one shard.

    Snapshots just before and after a deletion are drawn between two rounds.
    """
    order = {"before": -0.5, "deleted": -0.4}
    points = []
    for e in run.evaluations:
        if e["device"] == device and shard in e["accuracy"]:
            points.append(
                (int(e["round"]) + order.get(str(e["tag"]).split(":")[0], 0.0), e["accuracy"][shard])
            )
    points = sorted(points, key=lambda point: point[0])
    return _with_gaps(run, device, points)


def _with_gaps(run: RunRecords, device: str, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Add a gap for each absence of a device, so that no line is drawn over it."""
    starts = [e["t_s"] for e in run.injected if e["kind"] in ARRIVALS and e["device"] == device]
    lines = run.metrics.get(device, [])
    for start in starts:
        earlier = [int(line["round"]) for line in lines if line["t1_s"] <= start]
        if earlier:
            points.append((max(earlier) + 0.5, float("nan")))
    return sorted(points, key=lambda point: point[0])


def _split(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    pairs = list(points)
    return [x for x, _ in pairs], [y for _, y in pairs]


def mark_events(axes: Axes, run: RunRecords, named: bool) -> None:
    """Draw a vertical line at each event. More than `NAMED` events are fainter and have no names."""
    many = len(run.injected) > NAMED
    for event in run.injected:
        ink = MARKS.get(str(event["kind"]), "#777777")
        axes.axvline(
            int(event["round"]), color=ink, linewidth=1, linestyle="--", alpha=0.25 if many else None
        )
        if named and not many:
            axes.annotate(
                f"{event['device']} {event['kind']}",
                (int(event["round"]), 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, -3),
                textcoords="offset points",
                va="top",
                fontsize=8,
                color=ink,
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.7, "linewidth": 0},
            )


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.12)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _legend(figure: Figure, panels: list[Axes], title: str) -> None:
    drawn = (
        [line for line in panels[0].get_lines() if not str(line.get_label()).startswith("_")]
        if panels
        else []
    )
    if drawn:
        # New lines of equal width: a line that is thick in this panel may be thin in the next one.
        handles = [Line2D([], [], color=line.get_color(), linestyle=line.get_linestyle()) for line in drawn]
        labels = [str(line.get_label()) for line in drawn]
        figure.legend(handles, labels, title=title, loc="outside right upper", frameon=False, fontsize=9)


# -- bytes -----------------------------------------------------------------------------------------------
def budget(run: RunRecords) -> Figure:
    """Bytes that each device spent of its budget in each round, and the budget of a round."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    for device in run.devices:
        lines = run.metrics[device]
        x, y = [int(line["round"]) for line in lines], [line["spent_bytes"] / 1e6 for line in lines]
        axes.plot(x, y, color=colour(device, run.devices), label=device, linewidth=1.6)
    granted = {
        int(line["round"]): line["granted_bytes"] / 1e6 for d in run.devices for line in run.metrics[d]
    }
    axes.step(*_split(sorted(granted.items())), where="mid", color="black", linestyle=":", label="budget")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("round")
    axes.set_ylabel("MB spent in a round")
    mark_events(axes, run, named=True)
    _plain(axes)
    _legend(figure, [axes], "device")
    return figure


# -- heat maps -------------------------------------------------------------------------------------------
def contributions(run: RunRecords) -> Figure | None:
    """The norm ||C_u|| of each block by layer group, as a mean over devices; None if none was recorded.

    Columns: before and after each of the first events, and the end of the run.
    """
    columns = [(name, _norms(run, at)) for name, at in _moments(run)]
    columns = [(name, norms) for name, norms in columns if norms]
    if not columns:
        return None
    blocks = in_order({block for _, norms in columns for block in norms})[:PANELS]
    groups = list(dict.fromkeys(group for _, norms in columns for found in norms.values() for group in found))
    height = 1.3 + 0.34 * len(blocks)
    figure = Figure(figsize=(min(WIDTH, 1.6 + 1.7 * len(columns)), height), layout="constrained")
    panels = np.ravel(figure.subplots(1, len(columns), sharey=True, squeeze=False))
    tables = [
        np.array([[norms.get(b, {}).get(g, np.nan) for g in groups] for b in blocks]) for _, norms in columns
    ]
    top = max((float(np.nanmax(t)) for t in tables if not np.isnan(t).all()), default=1.0)
    for panel, (name, _), values in zip(panels, columns, tables, strict=True):
        _heat(panel, values, top or 1.0, "{:.2g}", "Blues")
        panel.set_title(name, fontsize=9)
        panel.set_xticks(range(len(groups)), groups, fontsize=8)
    panels[0].set_yticks(range(len(blocks)), blocks, fontsize=8)
    return figure


def _moments(run: RunRecords) -> list[tuple[str, Moment]]:
    """Title and moment of each column of `contributions`."""
    moments = []
    for event in injected_events(run)[:SHOWN_EVENTS]:
        name, seen = f"{event.device} {event.record['kind']}", event.detections().values()
        after = max((float(entry["t_s"]) for entry in seen), default=event.t_s)
        before = [*event.survivors, *([event.device] if event.record["kind"] not in ARRIVALS else [])]
        moments.append((f"before\n{name}", Moment(before, until_s=event.t_s)))
        moments.append((f"after\n{name}", Moment(event.survivors, since_s=after)))
    ended = in_order({str(e["device"]) for e in run.tagged("end")})
    return [*moments, ("end", Moment(ended, until_s=float("inf")))]


@dataclass(frozen=True)
class Moment:
    """A time in the run: for each device, one closed round.

    With `until_s`: the last round closed by then. Else: the first round closed after `since_s`.
    """

    devices: list[str]
    until_s: float | None = None
    since_s: float = 0.0

    def pick(self, lines: list[Record]) -> Record | None:
        """The round of a device at this moment, of all its rounds in order; None if there is none."""
        if self.until_s is not None:
            return next((line for line in reversed(lines) if float(line["t1_s"]) <= self.until_s), None)
        return next((line for line in lines if float(line["t1_s"]) > self.since_s), None)


def _norms(run: RunRecords, moment: Moment) -> dict[str, dict[str, float]]:
    """By block and group, the mean norm over the moment's devices."""
    found: dict[str, dict[str, list[float]]] = {}
    for device in moment.devices:
        line = moment.pick(run.metrics.get(device, []))
        for block, groups in line["norms"].items() if line else ():
            for group, norm in groups.items():
                found.setdefault(block, {}).setdefault(group, []).append(float(norm))
    return {b: {g: float(np.mean(v)) for g, v in groups.items()} for b, groups in found.items()}


def matrix(summary: Record) -> Figure | None:
    """Accuracy of each live device (row) on each live device's facts (column) at the end, in per cent.

    None if no device reached the end.
    """
    devices, shards = summary["accuracy"]["devices"], summary["accuracy"]["shards"]
    if not devices:
        return None
    values = np.array(summary["accuracy"]["matrix"], dtype=float)
    side = 1.4 + 0.55 * len(devices)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    _heat(axes, 100 * values, 100.0, "{:.0f}", "Greens")
    axes.set_xticks(range(len(shards)), shards)
    axes.set_yticks(range(len(devices)), devices)
    axes.set_xlabel("facts of (per cent answered)")
    axes.set_ylabel("device")
    return figure


def _heat(axes: Axes, values: np.ndarray, top: float, form: str, colours: str) -> None:
    axes.imshow(values, vmin=0, vmax=top * 1.25, cmap=colours, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else form.format(value)
        ink = "white" if value > 0.75 * top else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
