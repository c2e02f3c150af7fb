"""The receipt of each deletion: who was forgotten, when, by whom, and what is left of its knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from emulation.analysis.event_outcomes import InjectedEvent, injected_events
from emulation.analysis.records import Record, RunRecords
from emulation.report.formatting import UNKNOWN, number, percent
from emulation.report.report_tables import Table

STAGES = {
    "before": "before the deletion",
    "deleted": "right after it",
    "corrected": "after the correction",
    "end": "at the end",
}
WHY = {
    "leave": "left and asked to be forgotten",
    "crash": "crashed, and the scenario deletes the blocks of crashed devices",
}
ATTACK = "mia_"  # metrics of membership inference begin with this
CLOSE = 0.10  # of 40 answers at chance 1/24, at most 5 are right in 99 of 100 checks: 8 points above chance


@dataclass(frozen=True)
class Receipt:
    """The receipt of one deletion, ready to be printed."""

    title: str
    why: str
    blocks: str
    residual: str
    files: str
    knowledge: Table
    hashes: Table


def receipts(run: RunRecords, summary: Record) -> list[Receipt]:
    """One receipt for each event after which survivors deleted a block, in order."""
    pairs = zip(injected_events(run), summary["events"], strict=True)
    found = [(event, outcome, deletions(event)) for event, outcome in pairs]
    return [_receipt(event, outcome, made, summary) for event, outcome, made in found if made]


def deletions(event: InjectedEvent) -> dict[str, Record]:
    """Survivor -> its record of the first deletion of a block of the event's device since the event."""
    found: dict[str, Record] = {}
    if event.record["kind"] not in WHY:
        return found
    for survivor in event.survivors:
        for entry in event.run.events.get(survivor, []):
            same = entry["event"] == "deleted" and entry.get("peer") == event.device
            if same and float(entry["t_s"]) >= event.t_s:
                found.setdefault(survivor, entry)
    return found


def _receipt(event: InjectedEvent, outcome: Record, made: Mapping[str, Record], summary: Record) -> Receipt:
    blocks = sorted({f"{event.device}@{entry['incarnation']}" for entry in made.values()})
    return Receipt(
        title=f"{event.device}, forgotten after round {event.round}",
        why=f"At {event.t_s:.1f} s {event.device} {WHY[event.record['kind']]}.",
        blocks=", ".join(blocks),
        residual=meaning(outcome),
        files=_files(summary, blocks),
        knowledge=_knowledge(event.device, outcome),
        hashes=_hashes(event, made),
    )


def residual(outcome: Record, stage: str = "end") -> float | None:
    """The share of the leaver's facts that survivors know at a stage, above facts that nobody trained."""
    own, nobody = outcome["leaver_accuracy"].get(stage), outcome.get("control_accuracy", {}).get(stage)
    return None if own is None or nobody is None else float(own) - float(nobody)


def meaning(outcome: Record) -> str:
    """The residual in words."""
    left = residual(outcome)
    if left is None:
        return "The residual is unknown: the run has no evaluation of facts that nobody trained."
    before = residual(outcome, "before")
    amount = f"Residual: {_points(left)} percentage points relative to facts that nobody trained" + (
        f", {_points(before)} before the deletion. " if before is not None else ". "
    )
    if left <= CLOSE:
        return amount + (
            "The survivors answer as they answer about unknown facts: guessing can give such a difference."
        )
    return amount + (
        "The survivors know more than guessing gives: facts that other devices hold too, knowledge that "
        "leaked into other blocks (isolation.leak above 0), or a mixing mode that deletes nothing."
    )


def _points(share: float) -> str:
    return f"{100 * share:+.0f}".replace("-", "−")


def _knowledge(device: str, outcome: Record) -> Table:
    """By stage: accuracy on the device's facts and on facts that nobody trained, membership inference."""
    nobody, attacks = outcome.get("control_accuracy", {}), _attacks(outcome)
    rows = [
        (
            text,
            percent(outcome["leaver_accuracy"].get(stage)),
            percent(nobody.get(stage)),
            percent(outcome["survivor_accuracy"].get(stage)),
            *(number(values.get(stage), "{:.2f}") for values in attacks.values()),
        )
        for stage, text in STAGES.items()
    ]
    heads = ("when", f"facts of {device}", "facts that nobody trained", "survivors' own facts", *attacks)
    note = (
        " Membership inference: area under the ROC curve; 0.5 is guessing."
        if attacks
        else " Membership inference was not measured in this run."
    )
    return Table(f"Share of facts that survivors answer correctly, on average.{note}", heads, rows)


def _attacks(outcome: Record) -> dict[str, Mapping[str, float]]:
    """Head of a column -> the values of an attack on the device's data, by stage."""
    metrics: Mapping[str, Record] = outcome.get("metrics", {})
    return {
        f"membership inference ({name.removeprefix(ATTACK)})": whose.get("device", {})
        for name, whose in metrics.items()
        if name.startswith(ATTACK) and whose.get("device")
    }


def _hashes(event: InjectedEvent, made: Mapping[str, Record]) -> Table:
    rows = [
        (
            survivor,
            f"{float(entry['t_s']) - event.t_s:.2f}",
            str(entry["round"]),
            str(entry.get("sha256_before") or UNKNOWN),
            str(entry.get("sha256_after") or UNKNOWN),
        )
        for survivor, entry in made.items()
    ]
    heads = ("survivor", "deleted after, s", "in round", "SHA-256 before", "SHA-256 after")
    caption = "Adapter of each survivor just before and just after it deleted the block"
    return Table(caption, heads, rows, left=(3, 4), mono=(3, 4))


def _files(summary: Record, blocks: list[str]) -> str:
    found = summary["forgotten"]
    if found["holding"]:
        return f"These files still hold a forgotten block: {', '.join(found['holding'])}."
    missing = [block for block in blocks if block not in found["tombstones"]]
    if missing:
        return f"Saved files were not searched for {', '.join(missing)}: only a leave sets a tombstone."
    mended = f" {len(found['corrected'])} of them held it and were corrected." if found["corrected"] else ""
    return f"None of the {found['files_checked']} saved files of the run holds the block.{mended}"
