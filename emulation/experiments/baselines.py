"""The table of `unweft experiment baselines`: what each baseline reaches, what it costs and what it keeps."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from emulation.analysis.records import Record
from emulation.experiments.aggregate import rows_of, to_record
from emulation.experiments.arms import (
    EWC_LEAVE,
    FEDERASER,
    INFLUENCE,
    KD_UNLEARN,
    NAIVE,
    NAIVE_REMOVE,
    ORACLE,
    UNIFORM,
)
from emulation.experiments.statistics import interval
from emulation.experiments.tables import mb, number, spread, table

NEEDS = {
    UNIFORM: "nothing",
    NAIVE_REMOVE: "nothing",
    NAIVE: "nothing",
    EWC_LEAVE: "F and B* of the own block, in the correction",
    INFLUENCE: "the leaver, its data and time to send a gradient",
    KD_UNLEARN: "the leaver, its data and time for {leaver_steps:.0f} steps",
    FEDERASER: "the own moves of every second round of the training, in memory or on disk",
    ORACLE: "the time of a whole training",
}
KEPT = ("stored_bytes", "leaver_steps")


def with_storage(rows: Sequence[Record], measures: Sequence[Record]) -> list[Record]:
    """The rows with the bytes that one device keeps for the arm alone, and the leaver's steps."""
    kept = {(m["setting"], m["arm"], m["seed"]): {name: m.get(name, 0) for name in KEPT} for m in measures}
    nothing = dict.fromkeys(KEPT, 0)
    return [{**row, **kept.get((row["setting"], row["arm"], row["seed"]), nothing)} for row in rows]


def storage(rows: Sequence[Record]) -> list[Record]:
    """One entry for each setting and arm: the means of what is kept."""
    found = []
    for setting, arm in dict.fromkeys((row["setting"], row["arm"]) for row in rows):
        own = rows_of(rows, setting, arm)
        means = {name: to_record(interval([float(row[name]) for row in own])) for name in KEPT}
        found.append({"setting": setting, "arm": arm, **means})
    return found


def baselines_table(setting: str, summary: Sequence[Record], kept: Sequence[Record]) -> Table:
    """One row for each arm."""
    made = table(f"{setting}: baselines at a leave")
    heads = ("arm", "retain", "forget", "test", "RI %", "rounds", "steps", "CPU s", "MB", "kept\nMB")
    for head in heads:
        made.add_column(head, justify="left" if head == "arm" else "right", no_wrap=head == "arm")
    of_arm = {one["arm"]: one for one in kept if one["setting"] == setting}
    for e in (e for e in summary if e["setting"] == setting):
        shown = [spread(e[name], digits=2).replace(", ", ",\n") for name in ("retain", "forget", "test")]
        costs = [number(e["ri_loss"], 1), number(e["k"], 0), number(e["steps"], 0), number(e["cpu_s"], 1)]
        stored = of_arm[e["arm"]]["stored_bytes"]["mean"] / 1e6
        made.add_row(e["arm"], *shown, *costs, mb(e["bytes"]), f"{stored:.2f}")
    made.caption = (
        "retain, forget, test (the other wording): at the end, with t intervals over seeds; RI: of the "
        "loss against uniform; rounds, steps of a device, CPU s, MB: from the leave on (oracle: from its "
        "start); kept: by one device for the baseline alone"
    )
    return made


def print_baselines(console: Console, summary: Sequence[Record], kept: Sequence[Record]) -> None:
    """Print the table of each setting, and a line on the needs of each arm."""
    for setting in dict.fromkeys(entry["setting"] for entry in summary):
        console.print(baselines_table(setting, summary, kept))
    for one in {entry["arm"]: entry for entry in kept}.values():
        if one["arm"] in NEEDS:
            needs = NEEDS[one["arm"]].format(leaver_steps=one["leaver_steps"]["mean"])
            console.print(f"• {one['arm']} needs: {needs}", highlight=False)
