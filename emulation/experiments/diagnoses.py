"""The diagnoses of an experiment at all rounds k: rounds.jsonl and a table of the shares of residuals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.table import Table

from emulation.analysis.records import Record
from emulation.experiments.regime_check import RESIDUALS, residual_shares
from emulation.experiments.tables import table


def write_diagnoses(measures: Sequence[Record], path: Path) -> None:
    """Write a line for each setting, arm, seed and decision: k, reason, actions, residuals and inputs by
    group."""
    with path.open("w", encoding="utf-8") as file:
        for m in measures:
            for decision in m["decisions"]:
                line = {**{key: m[key] for key in ("setting", "arm", "seed")}, **decision}
                file.write(json.dumps(line, allow_nan=False) + "\n")


def shares_by_round(measures: Sequence[Record]) -> list[Record]:
    """For each setting, arm and k: mean shares of the residuals over seeds, their mean sum in nats, and how
    many seeds name each residual as the largest."""
    keys = dict.fromkeys((m["setting"], m["arm"], d["k"]) for m in measures for d in m["decisions"])
    return [_at(measures, *key) for key in sorted(keys)]


def _at(measures: Sequence[Record], setting: str, arm: str, k: int) -> Record:
    own = [m for m in measures if (m["setting"], m["arm"]) == (setting, arm)]
    seen = [d["residuals"] for m in own for d in m["decisions"] if d["k"] == k]
    shares = [residual_shares(groups) for groups in seen]
    largest = [max(share, key=lambda name: share[name]) for share in shares]
    totals = [sum(group[key] for group in groups.values() for key in RESIDUALS) for groups in seen]
    return {
        "setting": setting,
        "arm": arm,
        "k": k,
        "shares": {name: fmean(share[name] for share in shares) for name in RESIDUALS.values()},
        "total": fmean(totals),
        "largest": {name: largest.count(name) for name in RESIDUALS.values()},
    }


def diagnoses_table(found: Sequence[Record], arm: str) -> Table:
    """The shares of residuals by setting and round, in the runs of one arm."""
    made = table(f"residuals in the runs of {arm}, by rounds after the event (k of the decision)")
    for head in ("setting", "k", *RESIDUALS.values(), "sum, nats", "largest in seeds"):
        made.add_column(head, justify="left" if head == "setting" else "right")
    for one in found:
        if one["arm"] == arm:
            shares = [f"{100 * share:.0f} %" for share in one["shares"].values()]
            counts = ", ".join(f"{name} {count}" for name, count in one["largest"].items() if count)
            made.add_row(one["setting"], str(one["k"]), *shares, f"{one['total']:.3f}", counts)
    return made
