"""A comparison of runs as tables for the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from emulation.experiments.run_comparison import Row, Subject, accuracy_curve, rows, scenario_differences
from emulation.experiments.statistics import Interval
from emulation.report.formatting import UNKNOWN, megabytes
from emulation.report.palette import colour, dashes
from emulation.report.plots import png

SHARES = ("accuracy", "survivors", "leaver", "joiner")


def table(subjects: Sequence[Subject]) -> Table:
    """One row for each measure. Each further subject has its difference to the first one in brackets."""
    found = Table(title="means, with 95 % intervals over seeds", title_justify="left")
    found.add_column("measure")
    for subject in subjects:
        found.add_column(escape(_head(subject)), justify="right")
    for row in rows(subjects):
        found.add_row(row.measure.replace("_", " "), *_cells(row))
    return found


def _head(subject: Subject) -> str:
    count = len(subject.runs)
    return subject.name if count == 1 else f"{subject.name} ({count} seeds)"


def _cells(row: Row) -> list[str]:
    cells = [shown(row.measure, mean) for mean in row.means]
    for number, difference in enumerate(row.differences, start=1):
        if difference is not None:
            cells[number] += f" ({shown(row.measure, difference, signed=True)})"
    return cells


def shown(measure: str, value: Interval | None, signed: bool = False) -> str:
    """A mean with its interval: `97.2 % [95.0, 99.4]`. Without an interval the mean alone."""
    if value is None:
        return UNKNOWN
    sign = "+" if signed else ""
    if "bytes" in measure:
        text = f"{'-' if value.mean < 0 else sign}{megabytes(abs(value.mean))}"
        known = value.low is not None and value.high is not None
        return f"{text} \\[{megabytes(value.low)}, {megabytes(value.high)}]" if known else text
    factor, unit = (100, " %") if any(word in measure for word in SHARES) else (1, "")
    text = f"{value.mean * factor:{sign}.3g}{unit}"
    if value.low is None or value.high is None:
        return text
    return f"{text} \\[{value.low * factor:.3g}, {value.high * factor:.3g}]"


def differences_table(subjects: Sequence[Subject]) -> Table:
    """The keys of the scenarios that differ."""
    found = Table(title="differences of the scenarios", title_justify="left")
    for head in ("key", *(subject.name for subject in subjects)):
        found.add_column(escape(head))
    for key, values in scenario_differences(subjects).items():
        found.add_row(key, *(escape(str(value)) for value in values))
    return found


def plot(subjects: Sequence[Subject], path: Path) -> None:
    """Write a picture: mean accuracy of all devices on all devices' data by round, a line for each subject.

    The runs of single seeds are thin lines of the same colour.
    """
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, subject in enumerate(subjects):
        look: dict[str, Any] = {"color": colour(number), "linestyle": dashes(number)}
        curves = [dict(accuracy_curve(run)) for run in subject.runs.values()]
        if len(curves) > 1:
            for curve in curves:
                axes.plot(list(curve), list(curve.values()), linewidth=0.7, alpha=0.5, **look)
        mean = _mean(curves)
        axes.plot(list(mean), list(mean.values()), linewidth=2, label=_head(subject), **look)
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy on all live devices' data")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.25)
    axes.legend()
    png(figure, path)


def _mean(curves: Sequence[dict[int, float]]) -> dict[int, float]:
    """The mean over the curves that have a round."""
    found = {}
    for round_ in sorted({round_ for curve in curves for round_ in curve}):
        known = [curve[round_] for curve in curves if round_ in curve]
        found[round_] = sum(known) / len(known)
    return found
