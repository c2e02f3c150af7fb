"""The diagnoses of an experiment at all rounds k: files, and a table of the shares of residuals.

The residuals are estimates in nats. Their sum should be the mean model's gap to the oracle, so the table has
both.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.table import Table

from emulation.analysis.records import Record
from emulation.experiments.arms import ORACLE
from emulation.experiments.regime_check import RESIDUALS, residual_shares
from emulation.experiments.tables import DASH, table


def write_diagnoses(measures: Sequence[Record], path: Path) -> None:
    """Write a line for each setting, arm, seed and decision: k, reason, actions, residuals and inputs by
    group."""
    with path.open("w", encoding="utf-8") as file:
        for m in measures:
            for decision in m["decisions"]:
                line = {**{key: m[key] for key in ("setting", "arm", "seed")}, **decision}
                file.write(json.dumps(line, allow_nan=False) + "\n")


def publish_diagnoses(measures: Sequence[Record], path: Path, arm: str) -> None:
    """Write a CSV line for each setting, seed, decision and group of one arm: action, residuals, inputs."""
    rows = [
        {
            **{key: m[key] for key in ("setting", "arm", "seed")},
            "revision": m.get("revision"),
            **{"k": decision["k"], "measured_k": decision["measured_k"], "group": group},
            **decision["groups"].get(group, {}),
            **{key: f"{value:.6g}" for key, value in residuals.items()},
        }
        for m in measures
        if m["arm"] == arm
        for decision in m["decisions"]
        for group, residuals in decision["residuals"].items()
    ]
    if rows:
        with path.open("w", encoding="utf-8", newline="") as file:
            lines = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
            lines.writeheader()
            lines.writerows(rows)


def shares_by_round(measures: Sequence[Record]) -> list[Record]:
    """For each setting, arm and k of a decision: mean shares of the residuals over seeds, their mean sum in
    nats, and how many seeds name each residual as the largest.

    measured_k: the round of the diagnosis, which is earlier. gap: the mean model's gap to the oracle at the
    evaluation that is nearest to the diagnosis; None without an oracle. capped: the share of the estimates of
    eta mu that were at their bound 1 (`rate_from_gaps`).
    """
    keys = dict.fromkeys((m["setting"], m["arm"], d["k"]) for m in measures for d in m["decisions"])
    return [_at(measures, *key) for key in sorted(keys)]


def _at(measures: Sequence[Record], setting: str, arm: str, k: int) -> Record:
    own = [m for m in measures if (m["setting"], m["arm"]) == (setting, arm)]
    decisions = [d for m in own for d in m["decisions"] if d["k"] == k]
    seen, measured_k = [d["residuals"] for d in decisions], decisions[0]["measured_k"]
    shares = [residual_shares(groups) for groups in seen]
    largest = [max(share, key=lambda name: share[name]) for share in shares]
    totals = [sum(group[key] for group in groups.values() for key in RESIDUALS) for groups in seen]
    return {
        "setting": setting,
        "arm": arm,
        "k": k,
        "measured_k": measured_k,
        "shares": {name: fmean(share[name] for share in shares) for name in RESIDUALS.values()},
        "total": fmean(totals),
        "largest": {name: largest.count(name) for name in RESIDUALS.values()},
        "gap": _gap(measures, own, measured_k),
        "capped": fmean(group.get("rate", 0.0) >= 1 for groups in seen for group in groups.values()),
    }


def _gap(measures: Sequence[Record], own: Sequence[Record], k: int) -> float | None:
    oracles = {(m["setting"], m["seed"]): m["curve"][-1]["loss"] for m in measures if m["arm"] == ORACLE}
    known = [(m, oracles[m["setting"], m["seed"]]) for m in own if (m["setting"], m["seed"]) in oracles]
    nearest = [(min(m["curve"], key=lambda point: abs(point["k"] - k)), best) for m, best in known]
    return fmean(point["loss"] - best for point, best in nearest) if nearest else None


def diagnoses_table(found: Sequence[Record], arm: str) -> Table:
    """The shares of residuals by setting and round, in the runs of one arm."""
    made = table(f"residuals in the runs of {arm}, by rounds after the event")
    heads = ("setting", "k", "used\nat k", *RESIDUALS.values(), "sum, nats", "gap, nats", "capped")
    for head in (*heads, "largest in seeds"):
        made.add_column(head, justify="left" if head == "setting" else "right")
    for one in found:
        if one["arm"] == arm:
            shares = [f"{100 * share:.0f} %" for share in one["shares"].values()]
            counts = ", ".join(f"{name} {count}" for name, count in one["largest"].items() if count)
            gap = DASH if one["gap"] is None else f"{one['gap']:.3f}"
            sums = (f"{one['total']:.3f}", gap, f"{100 * one['capped']:.0f} %")
            rounds = (str(one["measured_k"]), str(one["k"]))
            made.add_row(one["setting"], *rounds, *shares, *sums, counts)
    made.caption = (
        "k: of the diagnosis; used: by the decision; sum: of the estimated residuals; gap: of the mean model "
        "to the oracle at the nearest evaluation, which the sum estimates; capped: estimates of eta mu at "
        "their bound 1"
    )
    return made
