"""The result of a run as a table and a few sentences, for the terminal and for the report."""

from __future__ import annotations

from statistics import fmean

from rich.table import Table

from emulation.analysis.event_outcomes import RECOVERED
from emulation.analysis.records import Record
from emulation.analysis.unmet import nobody_met
from emulation.report.formatting import megabytes, percent, plural
from emulation.scenario.events import ARRIVALS

HEADS = ("device", "slot", "rounds", "own facts", "all live facts", "worst", "sent", "received")
VERBS = {  # by kind of event
    "leave": "left",
    "retire": "retired",
    "crash": "crashed",
    "stall": "stalled",
    "join": "joined",
    "return": "returned",
    "partition": "were cut off",
    "heal": "the partition healed",
}


def rows(summary: Record) -> list[tuple[str, ...]]:
    """The cells under `HEADS`, one row for each device that reached the end.

    While no device has reached the end: one row for each live device.
    """
    accuracy = summary["accuracy"]
    by_id = {device["id"]: device for device in summary["devices"]}
    found: list[tuple[str, ...]] = []
    for number, device in enumerate(accuracy["devices"]):
        known = [a for a in accuracy["matrix"][number] if a is not None]
        own = accuracy["matrix"][number][number]
        totals = by_id[device]
        found.append(
            (
                f"{device}@{totals['incarnation']}",
                str(totals["slot"]),
                str(totals["rounds"]),
                percent(own),
                percent(fmean(known) if known else None),
                percent(min(known, default=None)),
                megabytes(totals["bytes_sent"]),
                megabytes(totals["bytes_received"]),
            )
        )
    return found


def table(summary: Record) -> Table:
    """The result table for a terminal."""
    when = "so far" if summary["unfinished"] else "at the end"
    result = Table(title=f"{summary['scenario']}: what each live device answers {when}", title_justify="left")
    for head in HEADS:
        result.add_column(head, justify="left" if head == "device" else "right")
    for row in rows(summary):
        result.add_row(*row)
    return result


def sentences(summary: Record) -> list[str]:
    """Devices that never met, one sentence for each event and failure, then final accuracy and budget."""
    found = [
        f"the run was interrupted after {entry['t_s']:.0f} s and went on with round {entry['round']}"
        for entry in summary.get("resumed", [])
    ]
    found += _unmet_sentences(summary.get("unmet", []))
    found += _alone_sentences(summary.get("rounds_alone", {"count": 0}))
    found += [_event_sentence(event) for event in summary["events"]]
    found += [f"{d['id']} failed: {d['failure']}" for d in summary["devices"] if d.get("failure")]
    budget, final = summary["budget"], summary["final"]
    when = "so far" if summary["unfinished"] else "at the end"
    found.append(
        f"{when}: {percent(final['accuracy_all'])} of all live devices' facts on average, "
        f"{percent(final['accuracy_min'])} at worst"
        + (
            f"; {percent(summary['control_accuracy'])} of facts that nobody ever trained"
            if summary.get("control_accuracy") is not None
            else ""
        )
    )
    found.append(
        f"budget: {megabytes(budget['spent_bytes'])} of {megabytes(budget['granted_bytes'])} spent, "
        f"{plural(budget['violations'], 'violation')}"
    )
    found += _privacy_sentences(summary.get("privacy"))
    found += _masked_sentences(summary.get("masked"))
    return found + _clock_sentences(summary["links"]) + _forgotten_sentences(summary)


def _privacy_sentences(privacy: Record | None) -> list[str]:
    """What the devices have spent. A run without privacy has no sentence."""
    if not privacy or not privacy["epsilon"]:
        return []
    known = [value for value in privacy["epsilon"].values() if value is not None]
    most = f"{max(known):.2f}" if len(known) == len(privacy["epsilon"]) else "no finite value"
    target = f" of {privacy['target']:g}" if privacy["target"] else ""
    seeded = "" if privacy["secret"] else "; the noise follows from the seed, so nothing is protected"
    spent = f"a device has spent at most epsilon = {most}{target} at delta = {privacy['delta']:g}"
    return [f"privacy: {spent}{seeded}"]


def _masked_sentences(masked: Record | None) -> list[str]:
    """What masks have cost. A run without masks has no sentence."""
    if masked is None:
        return []
    every = plural(masked["decided"] + masked["lost"], "decision")
    lost = f"{masked['lost']} of {every} of all devices could not be made"
    clipped = f"; values of {plural(masked['clipped'], 'report')} were clipped" if masked["clipped"] else ""
    return [f"masked reports: {lost}{clipped}"]


def _clock_sentences(links: list[Record]) -> list[str]:
    """How wrong latencies are between hosts whose clocks differ. On one host there is nothing to say."""
    measured = [link["clock_s"] for link in links if link.get("clock_s")]
    if not measured:
        return []
    most = max(measured, key=lambda clock: abs(clock["difference"]) + clock["error"])
    return [
        f"latencies hold the difference of two clocks: at most {1e3 * abs(most['difference']):.1f} ms, "
        f"measured to ±{1e3 * most['error']:.1f} ms"
    ]


def _forgotten_sentences(summary: Record) -> list[str]:
    """What the end of the run did about blocks whose owners left. Nothing to say is no sentence."""
    found = []
    if summary["unconfirmed_leaves"]:
        found.append(f"no other device has confirmed the leave of {', '.join(summary['unconfirmed_leaves'])}")
    forgotten = summary["forgotten"]
    if forgotten["corrected"]:
        number = plural(len(forgotten["corrected"]), "file")
        found.append(f"at the end {number} still held a forgotten block and {_was(number)} corrected")
    if forgotten["holding"]:
        found.append(f"these files HOLD A FORGOTTEN BLOCK: {', '.join(forgotten['holding'])}")
    return found


def _unmet_sentences(groups: list[list[str]]) -> list[str]:
    if nobody_met(groups):
        return [f"no two devices ever met: {', '.join(group[0] for group in groups)} each trained alone"]
    return [f"warning: devices never met the others: {' | '.join(map(', '.join, groups))}"] if groups else []


def _alone_sentences(alone: Record) -> list[str]:
    if not alone["count"]:
        return []
    return [
        f"warning: in {alone['count']} of {alone['of']} device-rounds a device mixed with no neighbour; "
        "are round.deadline_s and radio.budget_bytes large enough?"
    ]


def _was(number: str) -> str:
    return "was" if number.startswith("1 ") else "were"


def _event_sentence(event: Record) -> str:
    unnamed = "all devices" if event["kind"] == "partition" else ""
    head = f"{event['device'] or unnamed} {VERBS[event['kind']]} at round {event['round']}".strip()
    parts = []
    if event["kind"] in ARRIVALS:
        end = event["joiner_accuracy"]
        if end["end_mean"] is not None:
            parts.append(
                f"at the end {percent(end['end_mean'])} of its facts, {percent(end['end_min'])} at worst"
            )
    elif event["leaver_accuracy"]["deleted"] is not None:
        leaver = event["leaver_accuracy"]
        parts.append(
            f"its facts {percent(leaver['before'])} → {percent(leaver['deleted'])} at once → "
            f"{percent(leaver['corrected'])} corrected → {percent(leaver['end'])} at the end"
        )
    elif event["leaver_accuracy"]["before"] is not None:
        leaver = event["leaver_accuracy"]
        parts.append(f"its facts {percent(leaver['before'])} → {percent(leaver['end'])} at the end")
    parts.append(_survivors(event))
    details = "; ".join(part for part in parts if part)
    return f"{head}: {details}" if details else head


def _survivors(event: Record) -> str:
    known = event["survivor_accuracy"]
    values = [known["before"], known["deleted"], known["corrected"]]
    steps = " → ".join(percent(value) for value in values if value is not None)
    if not steps:
        return ""
    rounds, before = event["rounds_to_recover"], known["before"]
    if before is None or (
        rounds is not None and min(v for v in values if v is not None) >= before * RECOVERED
    ):
        return f"survivors {steps}"
    if rounds is None:
        return f"survivors {steps}, never back at 95 % of it"
    cost = megabytes(event["bytes_to_recover"])
    return f"survivors {steps}, back at 95 % of it after {plural(rounds, 'round')}, {cost}"
