"""Re-emergence: how much a model knows of the leaver's facts in each round after the deletion (method 10)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from rich.table import Table

from emulation.analysis.records import Record
from emulation.experiments.aggregate import to_record
from emulation.experiments.arms import ORACLE, ORACLES
from emulation.experiments.statistics import interval
from emulation.experiments.tables import number, spread, table

MOST_SHOWN = 5  # values of k in the table


def re_emergence(measures: Sequence[Record]) -> list[Record]:
    """One entry for each setting and arm.

    by_k: the mean accuracy on the leaver's facts at each k. highest: the largest one of a seed over all k,
    with its interval over seeds. peak: the largest one of all seeds, with its seed and k. above: `highest`
    less the oracle's at its end, paired.
    """
    oracle = {(m["setting"], m["seed"]): _curve(m)[-1][1] for m in measures if m["arm"] == ORACLE}
    keys = dict.fromkeys((m["setting"], m["arm"]) for m in measures if m["arm"] not in ORACLES)
    found = []
    for setting, arm in keys:
        own = {m["seed"]: _curve(m) for m in measures if (m["setting"], m["arm"]) == (setting, arm)}
        highest = {seed: max(value for _, value in curve) for seed, curve in own.items()}
        above = [value - oracle[setting, s] for s, value in highest.items() if (setting, s) in oracle]
        peak, seed, k = max((value, -s, -k) for s, curve in own.items() for k, value in curve)
        found.append(
            {
                "setting": setting,
                "arm": arm,
                "by_k": _means(own.values()),
                "highest": to_record(interval(list(highest.values()))),
                "peak": {"forget": peak, "seed": -seed, "k": -k},
                "above": to_record(interval(above)),
            }
        )
    return found


def _curve(measured: Record) -> list[tuple[int, float]]:
    return [(int(p["k"]), float(p["forget"])) for p in measured["curve"]]


def _means(curves: Iterable[Sequence[tuple[int, float]]]) -> list[Record]:
    by_k: dict[int, list[float]] = {}
    for curve in curves:
        for k, value in curve:
            by_k.setdefault(k, []).append(value)
    return [{"k": k, "forget": fmean(values)} for k, values in sorted(by_k.items())]


def re_emergence_table(found: Sequence[Record], setting: str) -> Table:
    """One row for each arm: the means at some k, and the largest values over k."""
    entries = [one for one in found if one["setting"] == setting]
    ks = _shown(sorted({point["k"] for one in entries for point in one["by_k"]}))
    made = table(f"{setting}: the leaver's facts by rounds k after the event")
    for head in ("arm", *(f"k = {k}" for k in ks), "highest", "− oracle", "peak", "seed", "k"):
        made.add_column(head, justify="left" if head == "arm" else "right", no_wrap=head == "arm")
    for one in entries:
        at = {point["k"]: {"mean": point["forget"]} for point in one["by_k"]}
        means = [number(at.get(k), 2) for k in ks]
        largest = [spread(one[name], digits=2).replace(", ", ",\n") for name in ("highest", "above")]
        peak = one["peak"]
        made.add_row(one["arm"], *means, *largest, f"{peak['forget']:.3f}", str(peak["seed"]), str(peak["k"]))
    made.caption = (
        "accuracy on the leaver's facts, means over seeds; highest: over all evaluated k, with its t "
        "interval; peak: the largest of all seeds and k"
    )
    return made


def _shown(ks: Sequence[int]) -> list[int]:
    """At most MOST_SHOWN values, spread evenly, the first and the last among them."""
    if len(ks) <= MOST_SHOWN:
        return list(ks)
    return [ks[round(i * (len(ks) - 1) / (MOST_SHOWN - 1))] for i in range(MOST_SHOWN)]
