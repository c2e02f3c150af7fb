"""Writes rows.csv and results.json of an experiment, and prints its tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from emulation.analysis.records import Record
from emulation.experiments.arms import ORACLE
from emulation.experiments.statistics import MARGIN
from emulation.report.formatting import megabytes

DASH = "–"


def write_results(out: Path, rows: Sequence[Record], results: Mapping[str, Sequence[Record]]) -> None:
    """Write OUT/rows.csv, a line for each setting, arm and seed, and OUT/results.json, the aggregates."""
    with (out / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, fieldnames=list(rows[0]))
        lines.writeheader()
        lines.writerows(rows)
    text = json.dumps({"schema": 1, **results}, indent=1, allow_nan=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")


def print_tables(console: Console, summary: Sequence[Record]) -> None:
    """Print two tables for each setting."""
    for setting in dict.fromkeys(entry["setting"] for entry in summary):
        entries = [entry for entry in summary if entry["setting"] == setting]
        console.print(correction_table(setting, entries))
        console.print(forgetting_table(setting, entries))


def print_conclusions(console: Console, evidence: Sequence[Record], verdicts: Sequence[Record]) -> None:
    """Print one line for the regime of each setting, then one for each verdict."""
    for line in (*map(regime_line, evidence), *map(verdict_line, verdicts)):
        console.print(f"• {line}", highlight=False, soft_wrap=True)


def regime_line(evidence: Record) -> str:
    """The residual shares of one setting and the choices of `dominant`, as text."""
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in evidence["shares"].items())
    chosen = ", ".join(f"{name} {count}" for name, count in evidence["choices"].items())
    text = f"{evidence['setting']}: at the first diagnosis {shares}"
    return f"{text}; dominant chose {chosen} (decisions)" if chosen else text


def correction_table(setting: str, entries: Sequence[Record]) -> Table:
    """Table III of the paper, with intervals and the costs of the recovery."""
    made = table(f"{setting}: correction")
    heads = (
        "arm",
        "gap",
        "gap −\nuniform",
        "RI %",
        "Norm\nComm",
        "retain",
        "recov-\nered",
        "rounds",
        "bytes",
    )
    for head in heads:
        made.add_column(head, justify="left" if head == "arm" else "right", no_wrap=head == "arm")
    for e in entries:
        costs = [number(e["recovery_rounds"], 1), megabytes((e["recovery_bytes"] or {}).get("mean"))]
        gap = [spread(e["eg"]), spread(e["eg_minus_uniform"]), number(e["ri_gap"], 1)]
        others = [number(e["norm_comm"], 2), spread(e["retain"]), f"{e['recovered']}/{len(e['seeds'])}"]
        made.add_row(e["arm"], *gap, *others, *costs)
    made.caption = (
        "recovered: seeds that reached 95 % of the oracle's retain accuracy; rounds, bytes: their means"
    )
    return made


def forgetting_table(setting: str, entries: Sequence[Record]) -> Table:
    """Unlearning measures beside the oracle's. `equiv.`: equivalent at k = 0 and at K (TOST, p < 0.05)."""
    made = table(f"{setting}: forgetting")
    heads = ("arm", "forget", "Δ at 0", "equiv.", "AUC", "Δ at 0", "equiv.", "TPR", "test", "ToW")
    for number_, head in enumerate(heads):
        made.add_column(head, justify="right" if number_ else "left", no_wrap=not number_)
    for e in entries:
        cells = []
        for name in ("forget", "auc"):
            at_deletion = None if e["arm"] == ORACLE else e[f"d_{name}_0"]
            cells += [number(e[name], 2), _signed(at_deletion), equivalence(e["equivalence_p"], name)]
        made.add_row(e["arm"], *cells, *(number(e[name], 2) for name in ("tpr", "test", "tow")))
    test = f"within ±{MARGIN} of the oracle at k = 0 and at K, p < 0.05"
    made.caption = (
        f"Δ at 0: arm − oracle at k = 0; equiv.: {test}; AUC, TPR (at 1 % FPR): membership inference"
    )
    return made


def table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )


def number(found: Record | None, digits: int) -> str:
    return DASH if found is None else f"{found['mean']:.{digits}f}"


def _signed(found: Record | None) -> str:
    return DASH if found is None else f"{found['mean']:+.2f}"


def spread(found: Record | None, between: str = "\n") -> str:
    """The mean and the interval: 0.390 [0.350, 0.440]."""
    if found is None:
        return DASH
    if found["low"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f}{between}\\[{found['low']:.3f}, {found['high']:.3f}]"


def equivalence(p: Mapping[str, float | None], name: str) -> str:
    """yes or no: equivalence holds at k = 0 and at K; a dash if there are too few seeds."""
    values = [p.get(f"d_{name}_0"), p.get(f"d_{name}")]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return DASH
    return "yes" if max(known) < 0.05 else "no"


def verdict_line(verdict: Record) -> str:
    """One verdict as text."""
    found = verdict["eg"]
    text = f"{verdict['setting']}: {verdict['what']}: {spread(found, ' ')}"
    if found is not None and found["low"] is not None:
        excludes = found["low"] > 0 or found["high"] < 0
        text += ", which excludes 0" if excludes else ", which does not exclude 0"
    if "holds" in verdict:
        word = "holds" if verdict["holds"] else "does not hold"
        text += f"; within {verdict['allowed']:.3f} at no more bytes than uniform: {word}"
    return text
