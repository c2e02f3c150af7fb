"""The paper's gap-cost plane (event gap at K over the costs of an arm) and RI(k), as one picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from emulation.analysis.records import Record
from emulation.experiments.arms import ORACLES, UNIFORM
from emulation.experiments.plot import LEGEND_SIZE, MARKERS, TITLE_SIZE, Curve, draw_arm
from emulation.experiments.statistics import interval, relative_improvement
from emulation.report.palette import colour
from emulation.report.plots import png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRONT_INK = "0.6"
COSTS = (("norm_comm", "NormComm: bytes / uniform's"), ("norm_total", "NormTotal: bytes and local steps"))


def write_plane(rows: Sequence[Record], measures: Sequence[Record], path: Path) -> None:
    """Write a PNG: for each setting the gap over both costs, and RI by k.

    rows: `paired_rows`. measures: with the derived arms. Oracles are left out.
    """
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    figure = Figure(figsize=(15, 4.0 * max(1, len(settings))), layout="constrained")
    panels = figure.subplots(max(1, len(settings)), 3, squeeze=False)
    for three, setting in zip(panels, settings, strict=False):
        own = [row for row in rows if row["setting"] == setting and row["arm"] not in ORACLES]
        arms = list(dict.fromkeys(row["arm"] for row in own))
        for panel, (cost, label) in zip(three, COSTS, strict=False):
            draw_plane(panel, own, arms, cost)
            panel.set(xlabel=label, ylabel="gap at K, nats per token (95 % interval)")
            panel.set_title(f"{setting}: gap and cost", fontsize=TITLE_SIZE)
        curves = improvements([m for m in measures if m["setting"] == setting])
        for number, arm in enumerate(arms):
            draw_arm(three[2], arm, number, curves.get(arm, []))
        three[2].set(xlabel="rounds after the event", ylabel="RI %, of the loss (95 % interval)")
        three[2].set_title("RI(k) against uniform: higher is better", fontsize=TITLE_SIZE)
        three[2].legend(fontsize=LEGEND_SIZE, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for panel in three:
            panel.grid(alpha=0.25)
    png(figure, path)


def draw_plane(panel: Axes, rows: Sequence[Record], arms: Sequence[str], cost: str) -> None:
    """A point for each arm with the interval of its gap, and the front: no arm is below at no more cost."""
    points: list[tuple[float, float]] = []
    for number, arm in enumerate(arms):
        own = [row for row in rows if row["arm"] == arm and row[cost] is not None]
        gap, spent = interval([row["eg"] for row in own]), interval([row[cost] for row in own])
        if gap is None or spent is None:
            continue
        points.append((spent.mean, gap.mean))
        half = None if gap.high is None else [gap.high - gap.mean]
        mark = MARKERS[number % len(MARKERS)]
        panel.errorbar([spent.mean], [gap.mean], half, color=colour(number), marker=mark, capsize=2)
    best = front(points)
    panel.step(
        [x for x, _ in best], [y for _, y in best], where="post", color=FRONT_INK, linewidth=1, zorder=0
    )


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, gap) that no other point beats in both, by cost."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not found or y < found[-1][1]:
            found.append((x, y))
    return found


def improvements(measures: Sequence[Record]) -> dict[str, list[Curve]]:
    """RI by k of each arm, one curve a seed: 100 (L_uniform - L) / L_uniform, L on the survivors' facts."""
    base = {(m["seed"], p["k"]): p["loss"] for m in measures if m["arm"] == UNIFORM for p in m["curve"]}
    found: dict[str, list[Curve]] = {}
    for m in measures:
        known = [
            (p["k"], base[m["seed"], p["k"]], p["loss"]) for p in m["curve"] if (m["seed"], p["k"]) in base
        ]
        values = [(k, relative_improvement(uniform, loss)) for k, uniform, loss in known]
        found.setdefault(m["arm"], []).append([(k, value) for k, value in values if value is not None])
    return found
