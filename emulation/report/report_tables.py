"""The tables of a report. Cells are texts; `templates/chart.html.j2` prints them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emulation.analysis import latency_histogram
from emulation.analysis.records import Record, RunRecords, in_order
from emulation.report import moments, text
from emulation.report.formatting import UNKNOWN, megabytes, number, percent, plural
from emulation.scenario.events import ARRIVALS

BLOCKS = 24  # blocks at most in the table of norms
CAUSES = ("train", "correction", "transfer", "control")


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows. `left`, `mono`: columns of texts and of hashes."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = ()
    mono: Sequence[int] = ()
    kind: str = "cards"


@dataclass(frozen=True)
class Cell:
    """A value as a text, and its share of the largest value for the shade; None: no shade."""

    text: str
    share: float | None


@dataclass(frozen=True)
class Heat:
    """A table with shaded cells. `over`: heads that each span the same number of columns."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    over: Sequence[str] = ()


def result(summary: Record) -> Table:
    """What each device that reached the end answers."""
    return Table("Devices that reached the end, on the facts of all of them", text.HEADS, text.rows(summary))


def accuracy(summary: Record) -> Heat:
    """Accuracy at the end: devices (rows) on the facts of devices (columns)."""
    found = summary["accuracy"]
    rows = [
        (device, [Cell(UNKNOWN if v is None else f"{100 * v:.0f}", v) for v in row])
        for device, row in zip(found["devices"], found["matrix"], strict=True)
    ]
    return Heat(
        "Per cent of facts answered at the end. Row: device. Column: whose facts", found["shards"], rows
    )


def events(summary: Record) -> Table:
    """Accuracies around each event, and the cost of the recovery."""
    heads = (
        "event",
        "round",
        "noticed after (median, last)",
        "its facts: before",
        "deleted",
        "corrected",
        "end",
        "survivors' facts: before",
        "deleted",
        "corrected",
        "back at 95 % after",
    )
    rows = [_event(event) for event in summary["events"]]
    return Table("Accuracies: means over devices that were live before and after the event", heads, rows)


def _event(event: Record) -> tuple[str, ...]:
    noticed, its, others = event["detected_s"], event["leaver_accuracy"], event["survivor_accuracy"]
    end = event["joiner_accuracy"]["end_mean"] if event["kind"] in ARRIVALS else its["end"]
    seconds = f"{noticed['p50']:.2f} s, {noticed['max']:.2f} s" if noticed["p50"] is not None else UNKNOWN
    rounds = event["rounds_to_recover"]
    cost = UNKNOWN if rounds is None else f"{plural(rounds, 'round')}, {megabytes(event['bytes_to_recover'])}"
    return (
        f"{event['device']} {event['kind']}",
        str(event["round"]),
        seconds,
        *(percent(its[stage]) for stage in ("before", "deleted", "corrected")),
        percent(end),
        *(percent(others[stage]) for stage in ("before", "deleted", "corrected")),
        cost,
    )


def norms(run: RunRecords) -> list[Heat]:
    """Norms of the blocks by group: a table for each of the first events, before and after, and the end."""
    found = [(name, moments.norms(run, at)) for name, at in moments.moments(run)]
    top = max((v for _, held in found for own in held.values() for v in own.values()), default=1.0) or 1.0
    pairs = [found[i : i + 2] for i in range(0, len(found), 2)]
    return [_norms_table([p for p in pair if p[1]], top) for pair in pairs if any(held for _, held in pair)]


def _norms_table(columns: Sequence[tuple[str, moments.Norms]], top: float) -> Heat:
    """`columns`: title, and norms by block and group. `top`: the norm with the strongest shade."""
    held = [found for _, found in columns]
    blocks = in_order({block for found in held for block in found})[:BLOCKS]
    groups = list(dict.fromkeys(g for found in held for own in found.values() for g in own))
    names = [name for name, _ in columns]
    rows = [(block, _norms_of(block, held, groups, top)) for block in blocks]
    return Heat("Norms " + ", ".join(names), groups * len(columns), rows, names)


def _norms_of(block: str, columns: Sequence[moments.Norms], groups: Sequence[str], top: float) -> list[Cell]:
    values = [found.get(block, {}).get(group) for found in columns for group in groups]
    return [Cell(number(v), None if v is None or not math.isfinite(v) else v / top) for v in values]


def decisions(found: Sequence[Record]) -> Table | None:
    """The decisions of the correction policy; None without any."""
    if not found:
        return None
    groups = list(found[0]["groups"])
    heads = ("measured in round", *groups, "devices that differ", "reason")
    rows = [
        (
            str(d["epoch"]),
            *(_settings(d["groups"].get(group, {})) for group in groups),
            str(d["differ"]),
            str(d["reason"]).replace("->", "→"),
        )
        for d in found
    ]
    caption = (
        "Settings of each layer group: n local steps, λ proximal damping, γ mixing strength, "
        "H exchange every H-th round, rung: edges that were added to the graph"
    )
    return Table(caption, heads, rows, left=tuple(range(1, len(heads))), kind="cards prose")


def _settings(action: Record) -> str:
    names = {"steps": "n", "prox": "λ", "gamma": "γ", "period": "H", "rung": "rung"}
    return ", ".join(f"{names.get(name, name)} {value:g}" for name, value in action.items()) or UNKNOWN


def links(summary: Record) -> Table:
    """Bytes and latencies of each direction."""
    counts = [link.get("latency_counts", {}) for link in summary["links"]]
    bars = latency_histogram.bar_range(counts)
    low, high = latency_histogram.bounds_s(bars)
    clocks = any(link.get("clock_s") for link in summary["links"])
    heads = (
        "link",
        "messages",
        "sent",
        "received",
        "dropped",
        *CAUSES,
        "latency p50, s",
        "p99, s",
        *(("clocks, ms",) if clocks else ()),
        f"{low:.2g} s to {high:.2g} s",
    )
    rows = [
        (*_link(link), *((_clock(link),) if clocks else ()), latency_histogram.draw_bars(own, bars))
        for link, own in zip(summary["links"], counts, strict=True)
    ]
    caption = (
        "Bytes on the wire, frames and headers included; each device counts its own bytes. Latencies: "
        "messages in each quarter of a decade; each link has its own scale"
    ) + ("; they hold the difference of two hosts' clocks" if clocks else "")
    return Table(caption, heads, rows, left=(len(heads) - 1,))


def _clock(link: Record) -> str:
    """The receiver's clock less the sender's, and the bound of the error of this measurement."""
    clock = link.get("clock_s")
    return UNKNOWN if clock is None else f"{1e3 * clock['difference']:+.1f} ± {1e3 * clock['error']:.1f}"


def _link(link: Record) -> tuple[str, ...]:
    dropped = ", ".join(f"{cause} {megabytes(count)}" for cause, count in link["dropped_bytes"].items())
    return (
        f"{link['src']} → {link['dst']}",
        str(link["messages"]),
        megabytes(link["sent_bytes"]),
        megabytes(link["received_bytes"]),
        dropped or "0",
        *(megabytes(link["bytes_by_cause"][cause]) for cause in CAUSES),
        number(link["latency_s"]["p50"]),
        number(link["latency_s"]["p99"]),
    )


def devices(summary: Record) -> Table:
    """All devices that took part. With privacy: what each has spent of it."""
    privacy = summary.get("privacy")
    spent = () if privacy is None else (f"epsilon at delta {privacy['delta']:g}",)
    first = ("device", "exit", "rounds", "sent", "received", "processor, s", "memory", *spent)
    heads = (*first, "adapter, SHA-256")
    rows = [
        (
            f"{d['id']}@{number(d['incarnation'], '{}')}",
            number(d["exit"], "{}"),
            str(d["rounds"]),
            megabytes(d["bytes_sent"]),
            megabytes(d["bytes_received"]),
            number(d["train_cpu_s"], "{:.1f}"),
            megabytes(d["peak_rss_bytes"]),
            *(() if privacy is None else (number(privacy["epsilon"].get(d["id"]), "{:.2f}"),)),
            (d["adapter_sha256"] or UNKNOWN)[:16],
        )
        for d in summary["devices"]
    ]
    last = len(heads) - 1
    return Table("All devices that took part", heads, rows, left=(last,), mono=(last,))


def answers(event: Record, stages: Mapping[str, str]) -> Table | None:
    """Answers that a survivor generated before, right after and long after an event; None without any."""
    if not event.get("answers"):
        return None
    shown = {s: text for s, text in stages.items() if any(s in row["answers"] for row in event["answers"])}
    heads = ("facts of", "question", "learnt", *shown.values())
    rows = [
        (row["shard"], row["prompt"], row["expected"], *(row["answers"].get(s, UNKNOWN) for s in shown))
        for row in event["answers"]
    ]
    caption = f"{event['device']} {event['kind']}, round {event['round']}: answers of {event['survivors'][0]}"
    return Table(caption, heads, rows, left=tuple(range(1, len(heads))), kind="cards prose")


def metrics(event: Record, stages: Mapping[str, str]) -> Table | None:
    """Metrics of unlearning around an event, means over the survivors; None if none was measured."""
    found = [
        (name, event["device"] if whose == "device" else whose, values)
        for name, by in event.get("metrics", {}).items()
        for whose, values in by.items()
        if values
    ]
    shown = {s: text for s, text in stages.items() if any(s in values for *_, values in found)}
    rows = [(name, whose, *(number(v.get(s), "{:.3f}") for s in shown)) for name, whose, v in found]
    caption = f"{event['device']} {event['kind']}, round {event['round']}: metrics of unlearning"
    return Table(caption, ("metric", "data of", *shown.values()), rows) if rows else None
