"""Writes rows.csv and results.json of an experiment, and prints its tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from emulation.analysis.records import Record
from emulation.experiments.aggregate import MOST
from emulation.experiments.arms import ORACLES, UNIFORM
from emulation.experiments.statistics import MARGIN

DASH = "–"


def write_results(out: Path, rows: Sequence[Record], results: Mapping[str, Sequence[Record]]) -> None:
    """Write OUT/rows.csv, a line for each setting, arm and seed, and OUT/results.json, the aggregates."""
    with (out / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        lines.writeheader()
        lines.writerows(rows)
    text = json.dumps({"schema": 1, **results}, indent=1, allow_nan=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")


def print_tables(console: Console, summary: Sequence[Record], joins: Collection[str] = ()) -> None:
    """Print four tables for each setting. joins: the settings in which the last device joins."""
    for setting in dict.fromkeys(entry["setting"] for entry in summary):
        entries = [entry for entry in summary if entry["setting"] == setting]
        last = newcomer_table if setting in joins else forgetting_table
        for make in (correction_table, costs_table, recovery_table, last):
            console.print(make(setting, entries))


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
    """Table III of the paper, with intervals."""
    made = _columns(f"{setting}: correction", "arm", "gap", "gap − uniform", "p", "RI %", "retain")
    for e in entries:
        p = None if e["eg_minus_uniform"] is None or e["arm"] == UNIFORM else e["eg_minus_uniform"]["p"]
        gap = [spread(e["eg"]), spread(e["eg_minus_uniform"]), p_text(p), number(e["ri_gap"], 1)]
        made.add_row(e["arm"], *gap, spread(e["retain"]))
    made.caption = (
        "\\[low, high]: 95 % t interval over seeds; p: of gap = uniform's, adjusted over the arms (Holm)"
    )
    return made


def costs_table(setting: str, entries: Sequence[Record]) -> Table:
    """The costs from the event to K."""
    made = _columns(f"{setting}: costs", "arm", "rounds", "steps", "CPU s", "MB", "NormComm")
    for e in entries:
        times = [number(e["k"], 0), number(e["steps"], 0), number(e["cpu_s"], 1)]
        made.add_row(e["arm"], *times, mb(e["bytes"]), number(e["norm_comm"], 2))
    made.caption = "from the event to K; steps: of one survivor; CPU s, MB: of all survivors"
    return made


def recovery_table(setting: str, entries: Sequence[Record]) -> Table:
    """The costs until recovery, beside those of the oracle with the same steps and optimiser."""
    heads = ("arm", "seeds", "rounds", "steps", "CPU s", "MB", "% of rounds", "% of steps")
    made = _columns(f"{setting}: recovery", *heads)
    for e in entries:
        until = [number(e[f"recovery_{name}"], d) for name, d in (("rounds", 1), ("steps", 0), ("cpu_s", 1))]
        shares = [_percent(e[f"recovery_share_{name}"]) for name in ("rounds", "steps")]
        made.add_row(
            e["arm"], f"{e['recovered']}/{len(e['seeds'])}", *until, mb(e["recovery_bytes"]), *shares
        )
    made.caption = (
        "seeds that reached 95 % of the retain accuracy of the oracle with the same steps and optimiser, "
        "their mean costs until then, and shares of that oracle's costs"
    )
    return made


def forgetting_table(setting: str, entries: Sequence[Record]) -> Table:
    """Unlearning measures beside the oracle's. `equiv.`: equivalent at k = 0 and at K (TOST, p < 0.05)."""
    heads = ("arm", "forget", "Δ at\n0", "equiv.", "AUC", "Δ at\n0", "equiv.", "ToW")
    made = _columns(f"{setting}: forgetting", *heads)
    for e in entries:
        cells = []
        for name, shown in (
            ("forget", number(e["forget"], 2)),
            ("auc", spread(e["auc"], digits=2).replace(", ", ",\n")),
        ):
            at_deletion = None if e["arm"] in ORACLES else e[f"d_{name}_0"]
            cells += [shown, _signed(at_deletion), equivalence(e["equivalence_p"].get(name))]
        made.add_row(e["arm"], *cells, number(e["tow"], 2))
    test = f"within ±{MARGIN} of the oracle at k = 0 and at K, p < 0.05 (Holm)"
    made.caption = f"Δ at 0: arm − oracle at k = 0; equiv.: {test}; AUC: of membership inference"
    return made


def newcomer_table(setting: str, entries: Sequence[Record]) -> Table:
    """The facts of a device that joined. `forget` is the accuracy on them."""
    heads = ("arm", "newcomer", "− oracle", "− oracle\nat k = 0", "all", "test")
    made = _columns(f"{setting}: the newcomer's facts", *heads)
    for e in entries:
        at_join = None if e["arm"] in ORACLES else e["d_forget_0"]
        known = [spread(e["forget"]), spread(e["d_forget"]), number(at_join, 2)]
        made.add_row(e["arm"], *known, spread(e["retain"]), number(e["test"], 2))
    made.caption = (
        "newcomer: accuracy on its facts at K; oracle: it had the newcomer from the start; all: on the facts "
        "of all devices; test: these in the other wording"
    )
    return made


def _columns(title: str, *heads: str) -> Table:
    made = table(title)
    for head in heads:
        made.add_column(head, justify="left" if head == "arm" else "right", no_wrap=head in ("arm", "equiv."))
    return made


def mb(found: Record | None) -> str:
    """Bytes in MB."""
    return DASH if found is None else f"{found['mean'] / 1e6:.1f}"


def _percent(found: Record | None) -> str:
    return DASH if found is None else f"{100 * found['mean']:.0f}"


def p_of(found: Record | None) -> str:
    """The p of an interval as text."""
    return p_text(None if found is None else found["p"])


def p_text(p: float | None) -> str:
    """A p as text: 0.031, or < 0.001."""
    if p is None:
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )


def number(found: Record | None, digits: int) -> str:
    return DASH if found is None else f"{found['mean']:.{digits}f}"


def _signed(found: Record | None) -> str:
    return DASH if found is None else f"{found['mean']:+.2f}"


def spread(found: Record | None, between: str = "\n", digits: int = 3) -> str:
    """The mean and the interval: 0.390 [0.350, 0.440]."""
    if found is None:
        return DASH
    if found["low"] is None:
        return f"{found['mean']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{between}\\[{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def equivalence(p: float | None) -> str:
    """yes or no; a dash if there are too few seeds."""
    if p is None:
        return DASH
    return "yes" if p < 0.05 else "no"


def verdict_line(verdict: Record) -> str:
    """One verdict as text."""
    head = f"{verdict['setting']}: {verdict['what']}: "
    if "shares" in verdict:
        return head + recovery_text(verdict)
    found = verdict["eg"]
    text = head + spread(found, " ")
    if found is not None and found["low"] is not None:
        text += f"; p {'' if found['p'] < 0.001 else '= '}{p_text(found['p'])}, adjusted (Holm)"
    return text


def recovery_text(verdict: Record) -> str:
    """rounds 12 %, steps 45 % of its oracle's; goal of 25 % of both, by all seeds: missed."""
    shares = ", ".join(f"{name} {_percent(share)} %" for name, share in verdict["shares"].items())
    reached = "reached" if verdict["holds"] else "missed"
    return f"{shares} of its oracle's; goal of {100 * MOST:.0f} % of both, by all seeds: {reached}"
