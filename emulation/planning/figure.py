"""The figure of a plan: the model over the number of devices, and the measured runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from emulation.planning.forecast import Forecast, Wanted, forecast
from emulation.planning.measured_runs import MeasuredRun
from emulation.planning.model import Model
from emulation.planning.quantities import CONTROL, LEARNT, ROUND, is_free

SENT = "sent by a device, in a round"
PANELS = (LEARNT.title, SENT, CONTROL.title, ROUND.title)
MEASURED: dict[str, Callable[[MeasuredRun], float | None]] = {
    LEARNT.title: lambda run: run.figures.get(LEARNT.name),
    SENT: lambda run: run.figures.get("sent_bytes") if run.clock == "virtual" else None,
    CONTROL.title: lambda run: run.figures.get(CONTROL.name),
    ROUND.title: lambda run: run.figures.get(ROUND.name) if run.clock == "virtual" else None,
}
POINTS = 24
BEYOND = 100.0  # an interval is drawn up to so many times the largest estimate


def draw(model: Model, runs: Sequence[MeasuredRun], wanted: Wanted, path: Path) -> None:
    """Write the figure. The format follows from the ending of the path."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    sizes = np.unique(np.geomspace(min(model.sizes), max(wanted.devices, *model.sizes), POINTS).astype(int))
    plans = [forecast(model, replace(wanted, devices=int(size))) for size in sizes]
    shown = [
        run for run in runs if run.degree == wanted.degree and is_free(run) and run.churn == wanted.churn
    ]
    figure, grid = plt.subplots(2, 2, figsize=(9, 6.5), constrained_layout=True)
    for axes, title in zip(grid.flat, PANELS, strict=True):
        _panel(axes, title, plans, shown)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _panel(axes: Any, title: str, plans: Sequence[Forecast], runs: Sequence[MeasuredRun]) -> None:
    rows = [(plan.wanted.devices, plan.find(title)) for plan in plans]
    known = [(size, row.estimate) for size, row in rows if row.estimate is not None]
    if known:
        sizes, middles = [size for size, _ in known], [e.middle for _, e in known]
        bottom, top = min(middles) / BEYOND, max(middles) * BEYOND
        low, high = [max(e.low, bottom) for _, e in known], [min(e.high, top) for _, e in known]
        axes.fill_between(sizes, low, high, alpha=0.25, label="95 %")
        axes.plot(sizes, middles, label="model")
    points = [(run.devices, value) for run in runs if (value := MEASURED[title](run)) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), "k.", label="measured")
    axes.set(xscale="log", yscale="log", xlabel="devices", ylabel=rows[0][1].unit, title=title)
    axes.legend()
