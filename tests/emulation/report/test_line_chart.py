"""The geometry of charts: axes, names, events, values for the pointer."""

from __future__ import annotations

import math
import re
from itertools import pairwise

from emulation.report.formatting import percent
from emulation.report.line_chart import Axis, Chart, Drawn, Line, Mark, Points, draw, place_marks, thin
from emulation.report.palette import style


def line(name: str, points: Points, number: int = 0) -> Line:
    return Line(name, points, style(number))


def drawn(*lines: Line, marks: tuple[Mark, ...] = (), log: bool = False) -> Drawn:
    found = draw(Chart("title", "unit", lines, marks, log=log))
    assert found is not None
    return found


def test_a_line_goes_from_corner_to_corner() -> None:
    found = draw(Chart("t", "u", [line("a", [(0, 0.0), (10, 1.0)])], form=percent, top=1.0))
    assert found is not None and found.shapes[0].path == "M0 1000L1000 0"
    assert [(t.text, t.at) for t in found.y_ticks][::5] == [("0 %", 100.0), ("100 %", 0.0)]


def test_a_value_that_is_not_finite_interrupts_the_line() -> None:
    path = drawn(line("a", [(0, 1.0), (1, math.nan), (2, 1.0), (3, 1.0)])).shapes[0].path
    assert path.count("M") == 2 and path.count("L") == 1


def test_without_a_value_there_is_no_chart() -> None:
    assert draw(Chart("t", "u", [line("a", [(0, math.nan)])])) is None


def test_names_at_the_same_height_do_not_overlap() -> None:
    names = drawn(*(line(f"d{i}", [(0, 0.0), (1, 1.0)], i) for i in range(8))).names
    places = [name.at for name in names]
    assert all(b - a >= 7.4 for a, b in pairwise(places)) and places[0] >= 0 and places[-1] <= 100


def test_of_many_lines_the_highest_and_the_lowest_have_names() -> None:
    names = drawn(*(line(f"d{i}", [(0, 0.0), (1, float(i))], i) for i in range(20))).names
    assert [name.text for name in names] == ["d19", "d0"]


def test_a_wide_chart_of_many_lines_has_a_legend() -> None:
    lines = [line(f"d{i}", [(0, 0.0), (1, float(i))], i) for i in range(20)]
    found = draw(Chart("t", "u", lines, small=False))
    assert found is not None and [place.text for place in found.legend] == [f"d{i}" for i in range(20)]


def test_the_axis_of_tiny_values_has_no_tick_outside() -> None:
    found = drawn(line("rho", [(0, 0.0), (1, 9e-17)]))
    assert all(0 <= tick.at <= 100 for tick in found.y_ticks)


def test_lines_that_coincide_are_seen_through_each_other() -> None:
    """The solid line is drawn first. The gaps of the others then show it."""
    shapes = drawn(*(line(f"d{i}", [(0, 0.0), (1, 1.0)], i) for i in (2, 1, 0))).shapes
    assert [re.findall(r"d\d", shape.kind) for shape in shapes] == [["d0"], ["d1"], ["d2"]]


def test_the_pointer_finds_all_values_of_a_round() -> None:
    found = drawn(line("a", [(0, 1.0), (1, 2.0)]), line("b", [(1, 0.5)], 1), marks=(Mark(1, "d2 leave"),))
    assert [stop.text for stop in found.stops] == ["round 0\na: 1", "round 1\na: 2\nb: 0.5\nd2 leave"]
    assert sum(stop.width for stop in found.stops) == 1000


def test_names_of_close_events_are_in_different_rows() -> None:
    marks = [Mark(10, "d0 leave"), Mark(11, "d1 join"), Mark(60, "d2 leave"), Mark(75, "d3 leave")]
    places = place_marks(marks, Axis(0, 100))
    assert [place.row for place in places] == [0, 1, 0, 1]
    assert [place.leftward for place in places] == [False, False, False, True]


def test_many_events_have_no_names() -> None:
    marks = [Mark(float(i), "x") for i in range(17)]
    assert {place.text for place in place_marks(marks, Axis(0, 16))} == {""}


def test_a_logarithmic_axis_has_decades() -> None:
    found = drawn(line("a", [(0, 0.5), (1, 2000.0)]), log=True)
    assert [t.text for t in found.y_ticks] == ["0.1", "10", "1,000"]


def test_a_long_line_keeps_its_peaks() -> None:
    points = [(float(i), float(i == 777)) for i in range(5000)]
    short = thin(points, 100)
    assert len(short) <= 110 and (777.0, 1.0) in short and short[-1] == points[-1]
    assert [x for x, _ in short] == sorted(x for x, _ in short)


def test_a_chart_is_described_in_words() -> None:
    alt = drawn(line("a", [(0, 1.0), (1, 2.0)]), marks=(Mark(1, "d2 leave"),)).alt
    assert "a from 1 to 2" in alt and "d2 leave" in alt
