"""The paper's Table II: the priorities of the layer groups right after the event, beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from emulation.analysis.records import Record
from emulation.experiments.aggregate import to_record
from emulation.experiments.regime_check import first_decisions
from emulation.experiments.statistics import interval
from emulation.experiments.tables import number, spread, table

PAPER = {"early": 0.6346, "mid": 1.1394, "late": 2.0552}  # S_g of the paper at r = 4, 8 and 16
SHARES = ("p", "p_per_rank", "p_per_parameter")


def priorities(measures: Sequence[Record]) -> list[Record]:
    """One entry for each setting and group, from the first diagnosis of each seed: S, its shares p_g, and the
    shares of S per rank and per parameter, with intervals over seeds. Empty without a diagnosis."""
    found = []
    for setting in dict.fromkeys(m["setting"] for m in measures):
        firsts = first_decisions([m for m in measures if m["setting"] == setting])
        for group in firsts[0]["residuals"] if firsts else ():
            values = [first["residuals"][group] for first in firsts]
            means = {name: to_record(interval([v[name] for v in values])) for name in ("S", *SHARES)}
            found.append({"setting": setting, "group": group, **means})
    return found


def order(entries: Sequence[Record], name: str = "p") -> list[str]:
    """The groups of one setting by the mean of a column, the largest first."""
    return [e["group"] for e in sorted(entries, key=lambda e: -float(e[name]["mean"]))]


def compared(entries: Sequence[Record]) -> str:
    """How the order of the groups of one setting relates to the paper's."""
    here, theirs = order(entries), sorted(PAPER, key=lambda group: -PAPER[group])
    kind = {tuple(theirs): "the same", tuple(reversed(theirs)): "the opposite"}.get(tuple(here), "another")
    return f"order here: {' > '.join(here)}; in the paper: {' > '.join(theirs)}: {kind} order"


def priorities_table(found: Sequence[Record], setting: str) -> Table:
    """One row for each group of a setting."""
    entries = [one for one in found if one["setting"] == setting]
    made = table(f"{setting}: priorities at the first diagnosis (the paper's Table II)")
    for head in ("group", "S", "p", "p per rank", "p per\nparameter", "S, paper", "p, paper"):
        made.add_column(head, justify="left" if head == "group" else "right")
    total = sum(PAPER.values())
    for one in entries:
        paper = PAPER.get(one["group"])
        printed = ["–", "–"] if paper is None else [f"{paper:.4f}", f"{paper / total:.3f}"]
        shares = [number(one[name], 3) for name in SHARES[1:]]
        made.add_row(one["group"], number(one["S"], 4), spread(one["p"]), *shares, *printed)
    made.caption = f"{compared(entries)}. The paper's S is at r = 4, 8, 16 and grows with r alone"
    return made
