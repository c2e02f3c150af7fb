"""The results of a benchmark: measures with spread, ratios to a reference of the same run, a table, JSON.

The repetitions of all contenders are interleaved, and a ratio is the median over the repetitions.
Other load of the machine then affects both sides of a ratio.
"""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Measure:
    """One contender with a value for each repetition, in `unit`. It is one row of the table.

    reference: the contender of the same group that it is divided by.
    least, most: the required bounds of the ratio, or of the median without a reference; None: no bound.
    """

    group: str
    name: str
    unit: str
    samples: tuple[float, ...]
    reference: str | None = None
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples) if self.samples else math.nan


@dataclass
class Findings:
    """All results of one benchmark. notes: explanations, and reasons for missing measurements.

    runs: the single runs, for programs that read the file (`unweft bench scale` has them).
    """

    title: str
    command: str
    measures: list[Measure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    runs: list[dict[str, object]] = field(default_factory=list)

    def ratio(self, measure: Measure) -> float | None:
        """The ratio of a measure to its reference; None without a reference."""
        if measure.reference is None:
            return None
        base = next(m for m in self.measures if (m.group, m.name) == (measure.group, measure.reference))
        pairs = [a / b for a, b in zip(measure.samples, base.samples, strict=True) if b]
        return statistics.median(pairs) if pairs else math.nan

    def met(self, measure: Measure) -> bool | None:
        """Whether a measure is within its bounds; None without bounds."""
        if measure.least is None and measure.most is None:
            return None
        ratio = self.ratio(measure)
        value = measure.median if ratio is None else ratio
        low = -math.inf if measure.least is None else measure.least
        high = math.inf if measure.most is None else measure.most
        return low <= value <= high

    def to_dict(self) -> dict[str, object]:
        return {
            "title": self.title,
            "command": self.command,
            "machine": machine(),
            "measures": [self._row(measure) for measure in self.measures],
            "notes": self.notes,
            **({"runs": self.runs} if self.runs else {}),
        }

    def print(self, console: Console) -> None:
        console.print(self._table())
        for note in self.notes:
            console.print(f"• {note}", highlight=False, soft_wrap=True)

    def _row(self, m: Measure) -> dict[str, object]:
        required = {k: v for k, v in (("least", m.least), ("most", m.most)) if v is not None}
        return {
            "group": m.group,
            "name": m.name,
            "unit": m.unit,
            "samples": [_finite(sample) for sample in m.samples],
            "median": _finite(m.median),
            "reference": m.reference,
            "ratio": _finite(self.ratio(m)),
            "asked": required,
            "met": self.met(m),
            "note": m.note,
        }

    def _table(self) -> Table:
        table = Table(title=self.title, title_justify="left", caption=machine(), caption_justify="left")
        for column in ("", "measure"):
            table.add_column(column)
        for column in ("median", "range", "unit", "ratio", "required", "met"):
            table.add_column(column, justify="left" if column == "unit" else "right", no_wrap=True)
        group = ""
        for m in self.measures:
            if m.group != group and group:
                table.add_section()
            table.add_row(m.group if m.group != group else "", *self._cells(m))
            group = m.group
        return table

    def _cells(self, m: Measure) -> Sequence[str]:
        ratio = self.ratio(m)
        name = f"{m.name} ({m.note})" if m.note else m.name
        spread = f"{shown(min(m.samples))} ... {shown(max(m.samples))}" if len(m.samples) > 1 else ""
        verdict = {None: "", True: "yes", False: "[bold red]no[/]"}[self.met(m)]
        against = "" if ratio is None else f"{ratio:.2f} x"
        return (name, shown(m.median), spread, m.unit, against, _required(m), verdict)


def shown(value: float) -> str:
    """The value with four digits, and an exponent only if it is very small or large."""
    if not math.isfinite(value) or value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:.3e}"


def machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    python, system = platform.python_version(), platform.system()
    return f"{psutil.cpu_count()} CPUs, {memory:.0f} GiB, Python {python}, {system}"


def _required(m: Measure) -> str:
    if m.least is not None and m.most is not None:
        return f"{shown(m.least)} ... {shown(m.most)}"
    return (
        f">= {shown(m.least)}" if m.least is not None else f"<= {shown(m.most)}" if m.most is not None else ""
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
