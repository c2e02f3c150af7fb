"""Plots the curves of an experiment: event gap and retain accuracy by k, one line for each arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from emulation.analysis.records import Record
from emulation.experiments.arms import ORACLE, ORACLES, UNIFORM
from emulation.experiments.paired import event_gaps, without_correction
from emulation.experiments.statistics import RECOVERED
from emulation.report.plots import COLOURS, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = list[tuple[int, float]]
LINES = ("-", "--", ":")


def write_curves(measures: Sequence[Record], with_none: bool, path: Path) -> None:
    """Write a PNG of the means over seeds. A horizontal line shows the final value of the oracle."""
    measures = [*measures, *(without_correction(m) for m in measures if with_none and m["arm"] == UNIFORM)]
    settings = list(dict.fromkeys(m["setting"] for m in measures))
    figure = Figure(figsize=(11, 3.8 * len(settings)), layout="constrained")
    panels = figure.subplots(len(settings), 2, squeeze=False)
    for (left, right), setting in zip(panels, settings, strict=True):
        _draw(left, right, [m for m in measures if m["setting"] == setting])
        left.set_title(f"{setting}: loss above the oracle's", fontsize=10)
        right.set_title(f"{setting}: accuracy on survivors' facts", fontsize=10)
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    png(figure, path)


def _draw(left: Axes, right: Axes, measures: Sequence[Record]) -> None:
    oracles = {m["seed"]: m for m in measures if m["arm"] == ORACLE}
    arms = list(dict.fromkeys(m["arm"] for m in measures if m["arm"] not in ORACLES))
    for number, arm in enumerate(arms):
        own = [m for m in measures if m["arm"] == arm and m["seed"] in oracles]
        colour, dashes = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS)]
        left.plot(
            *_mean([event_gaps(m, oracles[m["seed"]]) for m in own]),
            label=arm,
            color=colour,
            linestyle=dashes,
        )
        known = [[(int(p["k"]), float(p["retain"])) for p in m["curve"]] for m in own]
        right.plot(*_mean(known), label=arm, color=colour, linestyle=dashes)
    left.axhline(0, color="black", linewidth=0.8)
    goal = RECOVERED * fmean(float(m["curve"][-1]["retain"]) for m in oracles.values())
    right.axhline(goal, color="black", linewidth=0.8, label="95 % of the oracle's")
    right.set_ylim(-0.02, 1.02)
    for panel in (left, right):
        panel.set_xlabel("rounds after the leave")
        panel.grid(alpha=0.25)


def _mean(curves: Sequence[Curve]) -> tuple[list[int], list[float]]:
    ks = sorted({k for curve in curves for k, _ in curve})
    by_k = {k: [value for curve in curves for at, value in curve if at == k] for k in ks}
    return ks, [float(np.mean(by_k[k])) for k in ks]
