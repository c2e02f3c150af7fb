"""The timeline of a run: when each device trained and when it waited, as a chart with one row a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from emulation.analysis.records import RunRecords
from emulation.report.line_chart import SIDE, Axis, Drawn, Mark, Place, Shape, place_marks, strips
from emulation.report.series import name_of
from emulation.watch.spans import Span, of_round

ROWS = 32  # devices at most
BUCKETS = 120  # strips that the pointer finds
FILL = 0.7  # height of a bar relative to its row
KINDS = {  # CSS class -> text
    "train": "local steps",
    "mix": "mixes, deletes, saves",
    "wait": "waits for neighbours",
}


def draw(run: RunRecords) -> Drawn | None:
    """The chart; None if no round was closed."""
    devices = [d for d in run.devices if run.metrics[d]][:ROWS]
    if not devices:
        return None
    last_s = max(float(line["t1_s"]) for d in devices for line in run.metrics[d])
    x, row = Axis(0.0, last_s or 1.0), SIDE / len(devices)
    spans = {device: _spans(run, device) for device in devices}
    kinds = {span.kind for own in spans.values() for span in own}
    seen = {kind: text for kind, text in KINDS.items() if kind in kinds}
    drawn = Drawn(
        "What each device did when",
        "seconds of the run's clock",
        "second",
        f"Timeline of {', '.join(devices)} over {last_s:.0f} s.",
        max(6.0, 1.7 * len(devices)),
    )
    for number, device in enumerate(devices):
        drawn.y_ticks.append(Place(device, 100 * (number + 0.5) / len(devices)))
        for kind in seen:
            path = _bars(spans[device], kind, x, row * (number + (1 - FILL) / 2), row * FILL)
            drawn.shapes.append(Shape(f"bar {kind}", path))
    drawn.marks = place_marks([Mark(float(e["t_s"]), name_of(e)) for e in run.injected], x)
    drawn.x_ticks = [Place(f"{t:g}", 100 * x.share(t)) for t in x.ticks(7)]
    drawn.legend = [Place(text, 0, f"bar-key {kind}") for kind, text in seen.items()]
    drawn.stops = strips([(_middle(i, last_s), _at(spans, _middle(i, last_s))) for i in range(BUCKETS)], x)
    return drawn


def _spans(run: RunRecords, device: str) -> list[Span]:
    real = run.scenario.clock == "real"
    found = (span for line in run.metrics[device] for span in of_round(device, line, real))
    return [span for span in found if span.kind in KINDS]


def _bars(spans: Sequence[Span], kind: str, x: Axis, top: float, height: float) -> str:
    """One SVG path of rectangles. Rectangles that touch each other on the screen are one."""
    parts: list[list[float]] = []
    for span in spans:
        start, end = SIDE * x.share(span.start_s), SIDE * x.share(span.end_s)
        if span.kind != kind:
            continue
        if parts and start - parts[-1][1] < 0.05:
            parts[-1][1] = end
        else:
            parts.append([start, end])
    return "".join(f"M{a:.1f} {top:.1f}H{b:.1f}V{top + height:.1f}H{a:.1f}Z" for a, b in parts)


def _middle(bucket: int, last_s: float) -> float:
    return (bucket + 0.5) * last_s / BUCKETS


def _at(spans: Mapping[str, Sequence[Span]], second: float) -> str:
    rows = [f"{second:.2f} s"]
    for device, own in spans.items():
        span = next((s for s in own if s.start_s <= second < s.end_s), None)
        rows.append(f"{device}: " + (f"round {span.round}, {KINDS[span.kind]}" if span else "not in a round"))
    return "\n".join(rows)
