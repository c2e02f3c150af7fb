"""Invariants of every run, checked from the records of the run: also after crashes and partitions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from emulation.analysis import event_outcomes, forgotten_files, records
from emulation.analysis.records import Record, RunRecords
from emulation.analysis.summary import summarise
from emulation.scenario.events import GONE


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant and the place where it is broken."""

    which: str
    where: str

    def __str__(self) -> str:
        return f"{self.which}: {self.where}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Longest permitted times, in seconds of the clock of the run."""

    agree_s: float = 20.0  # from an event until every survivor has detected it
    round_s: float = 60.0  # between two rounds of a device


def check(folder: Path, bounds: Bounds = Bounds(), hostile: frozenset[str] = frozenset()) -> list[Violation]:
    """All violations in the folder of a run; an empty list if every invariant holds.

    `hostile`: devices that are no part of the verdict. They may tell different devices different things, and
    claim slots that others hold, so the comparisons of the exports leave out their blocks.
    """
    run = records.load(folder)
    run.devices = [device for device in run.devices if device not in hostile]
    run.run["events"] = [event for event in run.injected if event["device"] not in hostile]
    exports = {d: found for d in run.devices if (found := _export(folder, d, hostile)) is not None}
    return [
        *_blocks_after_detection(run, exports),
        *_blocks_after_leave(run, exports, bounds.agree_s),
        *_undetected_ends(run, bounds.agree_s),
        *_different_blocks(exports, _recently_changed(run, bounds.agree_s)),
        *_slots_held_twice(exports),
        *_long_rounds(run, bounds.round_s),
        *_unbalanced_links(summarise(run), _idle_at_end(run, set(exports), hostile)),
        *_temporary_files(folder),
        *_files_with_tombstones(run),
    ]


def _export(folder: Path, device: str, hostile: frozenset[str]) -> Record | None:
    """The description of the adapter that a device exported, without the blocks of hostile devices."""
    file = folder / "adapters" / device / "unweft.json"
    if not file.exists():
        return None
    found: Record = json.loads(file.read_text(encoding="utf-8"))
    return {**found, "blocks": [block for block in found["blocks"] if block["device"] not in hostile]}


def _slots(export: Record) -> dict[str, int]:
    """Block ("d0@0") -> slot, in an exported adapter."""
    return {f"{b['device']}@{b['incarnation']}": int(b["slot"]) for b in export["blocks"]}


def _blocks_after_detection(run: RunRecords, exports: dict[str, Record]) -> Iterator[Violation]:
    """No device holds a block after it has detected the leave of the owner."""
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
            if device in exports and block in _slots(exports[device]):
                yield Violation(which, f"{block} in the adapter of {device}")


def _blocks_after_leave(run: RunRecords, exports: dict[str, Record], bound_s: float) -> Iterator[Violation]:
    """No device ends with a block whose owner recorded its own leave more than `bound_s` before.

    This covers an owner that returned so soon that the others detected its return only.
    """
    for owner in run.devices:
        incarnation = 0
        for event in run.events[owner]:
            if event["event"] == "slot":
                incarnation = int(event["incarnation"])
            if (event["event"], event.get("kind")) != ("leaving", "leave"):
                continue
            block = f"{owner}@{incarnation}"
            for device, export in exports.items():
                ended = max((float(m["t1_s"]) for m in run.metrics[device]), default=0.0)
                if block in _slots(export) and ended > float(event["t_s"]) + bound_s:
                    yield Violation("a forgotten block is held", f"{block} in the adapter of {device}")


def _undetected_ends(run: RunRecords, bound_s: float) -> Iterator[Violation]:
    """Each survivor that runs for `bound_s` after an end has detected it, if no partition is in the way."""
    partitions = [e for e in run.injected if e["kind"] == "partition"]
    for event in event_outcomes.injected_events(run):
        if event.record["kind"] not in GONE:
            continue
        seen, until = event.detections(), event.t_s + bound_s
        if _returned(run, event.device, event.t_s, until):  # the others then detect the new incarnation
            continue
        apart = any(p["t_s"] <= until for p in partitions)
        for survivor in event.survivors:
            if survivor in seen and float(seen[survivor]["t_s"]) <= until:
                continue
            if not apart and _ran_through(run, survivor, event.t_s, until):
                yield Violation(
                    "an end is not noticed in time", f"of {event.device} by {survivor}, {bound_s:g} s"
                )


def _returned(run: RunRecords, device: str, start_s: float, stop_s: float) -> bool:
    return any(
        (e["kind"], e["device"]) == ("return", device) and start_s <= float(e["t_s"]) <= stop_s
        for e in run.injected
    )


def _ran_through(run: RunRecords, device: str, start_s: float, stop_s: float) -> bool:
    """Whether one process of the device started before `start_s` and closed rounds after `stop_s`."""
    starts = _starts(run, device)
    closed = [float(line["t1_s"]) for line in run.metrics[device]]
    following = min((at for at in starts if at >= start_s), default=math.inf)
    return any(at < start_s for at in starts) and any(stop_s < at < following for at in closed)


def _starts(run: RunRecords, device: str) -> list[float]:
    return [float(e["t_s"]) for e in run.events[device] if e["event"] == "started"]


def _recently_changed(run: RunRecords, bound_s: float) -> set[str]:
    """Devices with an event less than `bound_s` before the median end: others need not have detected it."""
    last = [[e for e in run.events[d] if e["event"] == "finished"][-1:] for d in run.devices]
    ends = [float(e["t_s"]) for found in last for e in found if e.get("reason") == "finished"]
    since = median(ends) - bound_s if ends else math.inf
    return {str(e["device"]) for e in run.injected if float(e["t_s"]) > since}


def _different_blocks(exports: dict[str, Record], recent: set[str]) -> Iterator[Violation]:
    """At the end all devices hold the same blocks in the same slots, except blocks of `recent` devices."""
    held = {
        device: {key: slot for key, slot in _slots(export).items() if key.split("@")[0] not in recent}
        for device, export in exports.items()
    }
    for device, slots in held.items():
        reference = next(iter(held.values()))
        if slots != reference:
            different = sorted(set(slots.items()) ^ set(reference.items()))
            yield Violation("devices end with different blocks", f"{device}: {different}")


def _slots_held_twice(exports: dict[str, Record]) -> Iterator[Violation]:
    for device, export in exports.items():
        slots = list(_slots(export).values())
        twice = sorted({slot for slot in slots if slots.count(slot) > 1})
        if twice:
            yield Violation("a slot is held twice", f"{twice} on {device}")


def _long_rounds(run: RunRecords, bound_s: float) -> Iterator[Violation]:
    """A running device closes a round within `bound_s`."""
    for device in run.devices:
        lines = run.metrics[device]
        for before, after in pairwise(lines):
            start, stop = float(before["t1_s"]), float(after["t1_s"])
            gap, restarted = stop - start, any(start <= at <= stop for at in _starts(run, device))
            if gap > bound_s and not restarted:
                yield Violation(
                    "a device stands still", f"{device} for {gap:.1f} s after round {before['round']}"
                )


def _idle_at_end(run: RunRecords, live: set[str], hostile: frozenset[str]) -> set[str]:
    """The devices whose links were idle at their end.

    Hostile devices say no goodbye. A device that does not wait for it any longer leaves messages unread.
    """
    if not hostile:
        return live
    last = {d: run.events[d][-1] for d in live if run.events[d]}
    return {d for d, event in last.items() if event.get("reason") == "finished"}


def _unbalanced_links(summary: Record, live: set[str]) -> Iterator[Violation]:
    """On links between devices that reached the end as incarnation 0, sent = received + dropped."""
    complete = {d["id"] for d in summary["devices"] if d["id"] in live and d["incarnation"] == 0}
    for link in summary["links"]:
        if {link["src"], link["dst"]} <= complete and link["open_bytes"]:
            yield Violation(
                "sent != received + dropped", f"{link['src']} -> {link['dst']}: {link['open_bytes']}"
            )


def _files_with_tombstones(run: RunRecords) -> Iterator[Violation]:
    """No file of the run holds a block whose owner left."""
    for file in forgotten_files.report(run)["holding"]:
        yield Violation("a file holds a forgotten block", file)


def _temporary_files(folder: Path) -> Iterator[Violation]:
    for file in sorted(folder.rglob("*.tmp")):
        yield Violation("a temporary file is left", str(file.relative_to(folder)))
