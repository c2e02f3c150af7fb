"""The geometry of a chart in a page: lines over rounds, or bars over seconds, with values for the pointer.

The drawing area is an SVG of 1000 x 1000 units that the page stretches to any width. Texts are HTML.
`templates/chart.html.j2` prints what `draw` returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from matplotlib.ticker import MaxNLocator

from emulation.report.formatting import UNKNOWN, plain
from emulation.report.palette import Style

SIDE = 1000.0
POINTS = 400  # of a drawn line at most
STOPS = 160  # values of x at most that the pointer finds
NAME_GAP = 7.5  # per cent of the height between two names
NAMES = 12  # a chart with more lines names the highest and the lowest only
MARKS_NAMED = 16  # with more events, their names are shown by the pointer only
LETTER_SMALL, LETTER_WIDE = 2.6, 1.4  # per cent of the width that a letter of an event takes
RIGHT = 70.0  # per cent: events beyond have their names at their left
Points = Sequence[tuple[float, float]]  # y is nan where a line is interrupted


@dataclass(frozen=True)
class Line:
    """A line and its name. `floor`: the lower edge of a band below it, at the same x."""

    name: str
    points: Points
    style: Style
    bold: bool = False
    floor: Points = ()


@dataclass(frozen=True)
class Mark:
    """An event, drawn as a vertical line."""

    x: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart of lines. `top`: the end of the y axis, if it is fixed. `log`: a logarithmic y axis.

    `small`: it has others beside it.
    """

    title: str
    y_label: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    form: Callable[[float], str] = plain
    top: float | None = None
    log: bool = False
    x_label: str = "round"
    small: bool = True


@dataclass(frozen=True)
class Shape:
    """An SVG path. `kind`: its CSS classes. `name`: of a line."""

    kind: str
    path: str


@dataclass(frozen=True)
class Place:
    """A text and its place in per cent from the left or from the top. `kind`: CSS classes of its swatch.

    Names of events: `row` counts from the drawing area upwards, `leftward` names stand left of their line.
    """

    text: str
    at: float
    kind: str = ""
    row: int = 0
    leftward: bool = False


@dataclass(frozen=True)
class Stop:
    """A strip of the drawing area and the values that the pointer shows there."""

    left: float
    width: float
    text: str


@dataclass
class Drawn:
    """A chart that is ready to be printed."""

    title: str
    y_label: str
    x_label: str
    alt: str
    height_rem: float
    names_rem: float = 0.8  # width of the names at the right
    shapes: list[Shape] = field(default_factory=list)
    marks: list[Place] = field(default_factory=list)
    x_ticks: list[Place] = field(default_factory=list)
    y_ticks: list[Place] = field(default_factory=list)
    names: list[Place] = field(default_factory=list)
    legend: list[Place] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)


@dataclass(frozen=True)
class Axis:
    """Maps values to [0, 1]."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        return (at - low) / ((high - low) or 1.0)

    def ticks(self, count: int) -> list[float]:
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            step = max(1, -(-(last - first + 1) // count))
            return [10.0**power for power in range(first, last + 1, step)]
        found = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        return [float(t) for t in found if self.low <= t <= self.high]


def draw(chart: Chart) -> Drawn | None:
    """The geometry of a chart; None if no line has a value."""
    lines = [line for line in chart.lines if any(math.isfinite(y) for _, y in line.points)]
    if not lines:
        return None
    x, y = _x_axis(chart, lines), _y_axis(chart, lines)
    drawn = Drawn(
        chart.title, chart.y_label, chart.x_label, _describe(chart, lines), 12.0 if chart.small else 18.0
    )
    for line in lines:
        if line.floor:
            drawn.shapes.append(Shape(f"band c{line.style.colour}", _band(line, x, y)))
    # Interrupted lines last: where lines coincide, the solid one below is seen through the gaps.
    for line in sorted(lines, key=lambda line: line.style.dash):
        drawn.shapes.append(Shape(_kind(line), _path(thin(line.points), x, y)))
    drawn.marks = place_marks(chart.marks, x, LETTER_SMALL if chart.small else LETTER_WIDE)
    drawn.x_ticks = [Place(f"{t:g}", 100 * x.share(t)) for t in x.ticks(4 if chart.small else 7)]
    drawn.y_ticks = [Place(chart.form(t), 100 * (1 - y.share(t))) for t in y.ticks(5)]
    drawn.names = place_names(lines, y)
    drawn.names_rem = 2.6 + 0.45 * max(len(place.text) for place in drawn.names)
    if len(lines) > NAMES and not chart.small:
        drawn.legend = [Place(line.name, 0, _kind(line)) for line in lines]
    drawn.stops = _stops(chart, lines, x)
    return drawn


def thin(points: Points, most: int = POINTS) -> Points:
    """At most about `most` points: of each part of the line the first, the lowest and the highest."""
    if len(points) <= most:
        return points
    step, kept = -(-3 * len(points) // most), []
    for start in range(0, len(points), step):
        part = points[start : start + step]
        ends = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept += sorted({part[0], *ends}, key=lambda p: p[0])
    return [*kept, points[-1]]


def place_names(lines: Sequence[Line], y: Axis) -> list[Place]:
    """The name of each line at the height of its last value. Names that would overlap are moved apart."""
    ends = [(next(v for _, v in reversed(line.points) if math.isfinite(v)), line) for line in lines]
    ends.sort(key=lambda end: -end[0])
    if len(ends) > NAMES:
        ends = [ends[0], ends[-1]]
    wanted = [100 * (1 - y.share(value)) for value, _ in ends]
    places = _apart(wanted, min(NAME_GAP, 100 / max(1, len(ends) - 1)))
    return [Place(line.name, at, _kind(line)) for at, (_, line) in zip(places, ends, strict=True)]


def _apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending places from 0 to 100, at least `gap` from each other, near the wanted ones."""
    places: list[float] = []
    for at in wanted:
        places.append(max(at, places[-1] + gap if places else 0.0))
    limit = 100.0
    for index in reversed(range(len(places))):
        places[index] = min(places[index], limit)
        limit = places[index] - gap
    return places


def place_marks(marks: Sequence[Mark], x: Axis, letter: float = LETTER_WIDE) -> list[Place]:
    """The events from left to right. Each name gets the first row in which no other name is in its way.

    `letter`: per cent of the width that a letter takes. More than `MARKS_NAMED` events have no names.
    """
    if len(marks) > MARKS_NAMED:
        return [Place("", 100 * x.share(mark.x)) for mark in marks]
    taken: list[tuple[int, float, float]] = []
    found = []
    for mark in sorted(marks, key=lambda m: m.x):
        at, width = 100 * x.share(mark.x), letter * (len(mark.text) + 1)
        first, last = (at - width, at) if at > RIGHT else (at, at + width)
        full = {row for row, start, end in taken if start < last and first < end}
        row = next(i for i in range(len(marks)) if i not in full)
        taken.append((row, first, last))
        found.append(Place(mark.text, at, row=row, leftward=at > RIGHT))
    return found


def _x_axis(chart: Chart, lines: Sequence[Line]) -> Axis:
    values = [x for line in lines for x, _ in line.points] + [mark.x for mark in chart.marks]
    return Axis(min(values), max(max(values), min(values) + 1e-9))


def _y_axis(chart: Chart, lines: Sequence[Line]) -> Axis:
    values = [y for line in lines for _, y in (*line.points, *line.floor) if math.isfinite(y)]
    if chart.log:
        known = [v for v in values if v > 0] or [1.0]
        return Axis(
            10 ** math.floor(math.log10(min(known))), 10 ** math.ceil(math.log10(1.01 * max(known))), True
        )
    if chart.top is not None:
        return Axis(0.0, chart.top)
    return Axis(min(0.0, *values), (max(values) * 1.06) or 1.0)


def _kind(line: Line) -> str:
    return f"line c{line.style.colour} d{line.style.dash}{' bold' if line.bold else ''}"


def _path(points: Points, x: Axis, y: Axis) -> str:
    """An SVG path. A value that is not finite interrupts it."""
    parts, command = [], "M"
    for at, value in points:
        if math.isfinite(value):
            parts.append(f"{command}{SIDE * x.share(at):.0f} {SIDE * (1 - y.share(value)):.0f}")
        command = "L" if math.isfinite(value) else "M"
    return "".join(parts)


def _band(line: Line, x: Axis, y: Axis) -> str:
    there = [p for p in line.points if math.isfinite(p[1])]
    back = [p for p in reversed(line.floor) if math.isfinite(p[1])]
    return _path([*there, *back], x, y) + "Z"


def _stops(chart: Chart, lines: Sequence[Line], x: Axis) -> list[Stop]:
    values = [(line.name, {at: y for at, y in line.points if math.isfinite(y)}) for line in lines]
    known = sorted({at for _, own in values for at in own})
    texts = []
    for at in known[:: -(-len(known) // STOPS)]:
        rows = [f"{name}: {chart.form(own[at])}" for name, own in values if at in own]
        rows += [mark.text for mark in chart.marks if mark.x == at]
        texts.append((at, "\n".join([f"{chart.x_label} {at:g}", *rows])))
    return strips(texts, x)


def strips(texts: Sequence[tuple[float, str]], x: Axis) -> list[Stop]:
    """A strip around each x, up to the middle between it and the next one."""
    places = [SIDE * x.share(at) for at, _ in texts]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(places)), SIDE]
    return [
        Stop(round(edges[i], 1), round(edges[i + 1] - edges[i], 1), text) for i, (_, text) in enumerate(texts)
    ]


def _describe(chart: Chart, lines: Sequence[Line]) -> str:
    """The chart in words: the first and the last value of each line."""
    known = [(line.name, [y for _, y in line.points if math.isfinite(y)]) for line in lines]
    ends = "; ".join(f"{name} from {chart.form(v[0])} to {chart.form(v[-1])}" for name, v in known)
    events = ", ".join(mark.text for mark in chart.marks) or UNKNOWN
    return f"{chart.title}: {chart.y_label} by {chart.x_label}. {ends}. Events: {events}."
