"""Plots the curves of an experiment by k, one line for each arm: event gap, retained and forgotten facts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from emulation.analysis.records import Record
from emulation.experiments.arms import ORACLE, ORACLES
from emulation.experiments.paired import event_gaps
from emulation.experiments.statistics import RECOVERED, interval
from emulation.report.palette import colour, dashes
from emulation.report.plots import png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = list[tuple[int, float]]
MARKERS = "os^Dv<>pPX"
MARKED = 6  # markers on a line, at most; each arm begins them at another place
ORACLE_INK = "black"
WHOSE = ("survivors' facts", "the leaver's facts: lower is better")
WHOSE_AFTER_A_JOIN = ("all facts", "the newcomer's facts: higher is better")
LEGEND_SIZE, TITLE_SIZE = 7, 10


def write_curves(measures: Sequence[Record], path: Path, joins: Collection[str] = ()) -> None:
    """Write a PNG: means over seeds with their t intervals, one row of panels for each setting.

    joins: the settings in which the last device joins.
    """
    settings = list(dict.fromkeys(m["setting"] for m in measures))
    figure = Figure(figsize=(15, 4.0 * len(settings)), layout="constrained")
    rows = figure.subplots(len(settings), 3, squeeze=False)
    for row, setting in zip(rows, settings, strict=True):
        draw_setting(list(row), [m for m in measures if m["setting"] == setting])
        row[0].set_title(f"{setting}: loss above the oracle's", fontsize=TITLE_SIZE)
        known, last = WHOSE_AFTER_A_JOIN if setting in joins else WHOSE
        row[1].set_title(f"{known}: higher is better", fontsize=TITLE_SIZE)
        row[2].set_title(last, fontsize=TITLE_SIZE)
        row[2].legend(fontsize=LEGEND_SIZE, loc="center left", bbox_to_anchor=(1.0, 0.5))
    png(figure, path)


def draw_setting(panels: Sequence[Axes], measures: Sequence[Record]) -> None:
    """Draw the panels of one setting: event gap, accuracy on the facts to know, accuracy on the facts of the
    device of the event."""
    oracles = {m["seed"]: m for m in measures if m["arm"] == ORACLE}
    curves: list[Callable[[Record], Curve]] = [
        lambda m: event_gaps(m, oracles[m["seed"]]),
        lambda m: curve_of(m, "retain"),
        lambda m: curve_of(m, "forget"),
    ]
    arms = list(dict.fromkeys(m["arm"] for m in measures if m["arm"] not in ORACLES))
    for number, arm in enumerate(arms):
        own = [m for m in measures if m["arm"] == arm and m["seed"] in oracles]
        for panel, curve in zip(panels, curves, strict=True):
            draw_arm(panel, arm, number, [curve(m) for m in own])
    panels[0].axhline(0, color=ORACLE_INK, linewidth=0.8, label="oracle")
    goal = RECOVERED * _at_end(oracles.values(), "retain")
    panels[1].axhline(goal, color=ORACLE_INK, linewidth=0.8, label="95 % of the oracle's")
    panels[2].axhline(_at_end(oracles.values(), "forget"), color=ORACLE_INK, linewidth=0.8, label="oracle")
    for panel, label in zip(panels, ("nats per token", "accuracy", "accuracy"), strict=True):
        panel.set_xlabel("rounds after the event")
        panel.set_ylabel(f"{label} (mean over seeds, 95 % interval)")
        panel.grid(alpha=0.25)
    for panel in panels[1:]:
        panel.set_ylim(-0.04, 1.04)


def curve_of(measured: Record, name: str) -> Curve:
    """Pairs (k, score) of one arm and seed. Points without this score are left out."""
    return [(int(p["k"]), float(p[name])) for p in measured["curve"] if p.get(name) is not None]


def band(curves: Sequence[Curve]) -> list[tuple[int, float, float, float]]:
    """(k, mean, low, high) over seeds, by k. With one seed, low and high are the mean."""
    by_k: dict[int, list[float]] = {}
    for curve in curves:
        for k, value in curve:
            by_k.setdefault(k, []).append(value)
    found = []
    for k, values in sorted(by_k.items()):
        about = interval(values)
        assert about is not None
        low = about.mean if about.low is None else about.low
        high = about.mean if about.high is None else about.high
        found.append((k, about.mean, low, high))
    return found


def draw_arm(panel: Axes, arm: str, number: int, curves: Sequence[Curve]) -> None:
    """A line with markers and a band. Markers of lines that coincide stand at different rounds."""
    points = band(curves)
    if not points:
        return
    ks, means, lows, highs = (list(column) for column in zip(*points, strict=True))
    every = max(1, len(ks) // MARKED)
    panel.plot(
        ks,
        means,
        label=arm,
        color=colour(number),
        linestyle=dashes(number),
        marker=MARKERS[number % len(MARKERS)],
        markersize=4,
        markevery=(number % every, every),
    )
    panel.fill_between(ks, lows, highs, color=colour(number), alpha=0.12, linewidth=0)


def _at_end(oracles: Iterable[Record], name: str) -> float:
    return fmean(float(m["curve"][-1][name]) for m in oracles)
