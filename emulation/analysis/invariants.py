"""What must hold in every run, whatever happens to its devices; found from what the run has written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from emulation.analysis import event_outcomes, records
from emulation.analysis.records import Record, RunRecords
from emulation.analysis.summary import summarise
from emulation.scenario.events import GONE


@dataclass(frozen=True, slots=True)
class Violation:
    """Which invariant, and where it does not hold."""

    which: str
    where: str

    def __str__(self) -> str:
        return f"{self.which}: {self.where}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long things may take, in seconds of the run's clock."""

    agree_s: float = 20.0  # until everyone who lives on has noticed an event
    round_s: float = 60.0  # between two rounds of a device


def check(folder: Path, bounds: Bounds = Bounds()) -> list[Violation]:
    """All violations in a run's folder; none is the verdict "ok"."""
    run = records.load(folder)
    about = {d: read for d in run.devices if (read := _exported(folder, d)) is not None}
    return [
        *_forgotten(run, about),
        *_left_for_good(run, about, bounds.agree_s),
        *_noticed(run, bounds.agree_s),
        *_agreed(about, _unsettled(run, bounds.agree_s)),
        *_slots(about),
        *_rounds(run, bounds.round_s),
        *_books(summarise(run), set(about)),
        *_left_over(folder),
    ]


def _exported(folder: Path, device: str) -> Record | None:
    file = folder / "adapters" / device / "unweft.json"
    found: Record | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return found


def _blocks(about: Record) -> dict[str, int]:
    """Slot by block ("d0@0")."""
    return {f"{b['device']}@{b['incarnation']}": int(b["slot"]) for b in about["blocks"]}


def _forgotten(run: RunRecords, about: dict[str, Record]) -> Iterator[Violation]:
    """No device holds a block after it has heard that its owner left and asked to be forgotten."""
    which = "a forgotten block is held"
    for device in run.devices:
        for event in run.events[device]:
            if event["event"] != "peer_gone" or event["kind"] != "leave":
                continue
            block = f"{event['peer']}@{event['incarnation']}"
            later = [m for m in run.metrics[device] if float(m["t0_s"]) > float(event["t_s"])]
            for line in later:
                if block in line.get("norms", {}):
                    yield Violation(which, f"{block} on {device} in round {line['round']}")
                    break
            if device in about and block in _blocks(about[device]):
                yield Violation(which, f"{block} in the adapter of {device}")


def _left_for_good(run: RunRecords, about: dict[str, Record], bound_s: float) -> Iterator[Violation]:
    """No device ends with a block whose owner has said itself, long enough before, that it leaves.

    That one came back soon may be all that others have heard of it.
    """
    for owner in run.devices:
        incarnation = 0
        for event in run.events[owner]:
            if event["event"] == "slot":
                incarnation = int(event["incarnation"])
            if (event["event"], event.get("kind")) != ("leaving", "leave"):
                continue
            block = f"{owner}@{incarnation}"
            for device, found in about.items():
                ended = max((float(m["t1_s"]) for m in run.metrics[device]), default=0.0)
                if block in _blocks(found) and ended > float(event["t_s"]) + bound_s:
                    yield Violation("a forgotten block is held", f"{block} in the adapter of {device}")


def _noticed(run: RunRecords, bound_s: float) -> Iterator[Violation]:
    """Everyone who lives on for so long notices who has gone."""
    cut = [e for e in run.injected if e["kind"] in ("partition", "heal")]
    for event in event_outcomes.events(run):
        if event.record["kind"] not in GONE:
            continue
        seen, until = event.noticed(), event.t_s + bound_s
        if _returned(run, event.device, event.t_s, until):  # then a new incarnation is what others hear of
            continue
        apart = any(p["kind"] == "partition" and p["t_s"] <= until for p in cut)
        for survivor in event.survivors:
            if survivor in seen and float(seen[survivor]["t_s"]) <= until:
                continue
            if not apart and _lived_through(run, survivor, event.t_s, until):
                yield Violation(
                    "an end is not noticed in time", f"of {event.device} by {survivor}, {bound_s:g} s"
                )


def _returned(run: RunRecords, device: str, start_s: float, stop_s: float) -> bool:
    return any(
        (e["kind"], e["device"]) == ("return", device) and start_s <= float(e["t_s"]) <= stop_s
        for e in run.injected
    )


def _lived_through(run: RunRecords, device: str, start_s: float, stop_s: float) -> bool:
    """Whether one life of the device began before and still closed rounds afterwards."""
    starts = _starts(run, device)
    closed = [float(line["t1_s"]) for line in run.metrics[device]]
    following = min((at for at in starts if at >= start_s), default=math.inf)
    return any(at < start_s for at in starts) and any(stop_s < at < following for at in closed)


def _starts(run: RunRecords, device: str) -> list[float]:
    return [float(e["t_s"]) for e in run.events[device] if e["event"] == "started"]


def _unsettled(run: RunRecords, bound_s: float) -> set[str]:
    """Who came or went so shortly before the end of most devices that not all need have noticed."""
    ends = [
        float(e["t_s"])
        for d in run.devices
        for e in run.events[d]
        if e["event"] == "finished" and e.get("reason") == "finished"
    ]
    since = median(ends) - bound_s if ends else math.inf
    return {str(e["device"]) for e in run.injected if float(e["t_s"]) > since}


def _agreed(about: dict[str, Record], unsettled: set[str]) -> Iterator[Violation]:
    """At the end everyone holds the same blocks in the same slots, but for those that just came or went."""
    views = {
        device: {key: slot for key, slot in _blocks(found).items() if key.split("@")[0] not in unsettled}
        for device, found in about.items()
    }
    for device, view in views.items():
        reference = next(iter(views.values()))
        if view != reference:
            different = sorted(set(view.items()) ^ set(reference.items()))
            yield Violation("devices end with different blocks", f"{device}: {different}")


def _slots(about: dict[str, Record]) -> Iterator[Violation]:
    for device, found in about.items():
        slots = list(_blocks(found).values())
        twice = sorted({slot for slot in slots if slots.count(slot) > 1})
        if twice:
            yield Violation("a slot is held twice", f"{twice} on {device}")


def _rounds(run: RunRecords, bound_s: float) -> Iterator[Violation]:
    """Who lives makes rounds."""
    for device in run.devices:
        lines = run.metrics[device]
        for before, after in pairwise(lines):
            start, stop = float(before["t1_s"]), float(after["t1_s"])
            gap, restarted = stop - start, any(start <= at <= stop for at in _starts(run, device))
            if gap > bound_s and not restarted:
                yield Violation(
                    "a device stands still", f"{device} for {gap:.1f} s after round {before['round']}"
                )


def _books(summary: Record, live: set[str]) -> Iterator[Violation]:
    """On links between devices that reached the end in their first life, sent = received + dropped."""
    whole = {d["id"] for d in summary["devices"] if d["id"] in live and d["incarnation"] == 0}
    for link in summary["links"]:
        if {link["src"], link["dst"]} <= whole and link["open_bytes"]:
            yield Violation(
                "sent != received + dropped", f"{link['src']} -> {link['dst']}: {link['open_bytes']}"
            )


def _left_over(folder: Path) -> Iterator[Violation]:
    for file in sorted(folder.rglob("*.tmp")):
        yield Violation("a temporary file is left", str(file.relative_to(folder)))
