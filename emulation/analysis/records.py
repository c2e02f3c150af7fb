"""Reads the files of a run: lines of JSON in the formats of docs/records.md."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emulation.analysis.lives import event_order, with_lives
from emulation.scenario.events import GONE
from emulation.scenario.loading import read
from emulation.scenario.schema import Scenario
from peers.errors import InputError
from peers.runtime.child_process import failure_file

Record = dict[str, Any]
INJECTED = "injected.jsonl"  # events of the launcher, each written when it happens
RESUMED = "resumed"  # of a line in INJECTED: the run goes on after an interruption
NO_EVENTS = (RESUMED, "resume")  # kinds in INJECTED that are no events of the scenario: "resume" ends a stall
EVALUATIONS = "evaluations.jsonl"  # by the evaluator
EVALUATOR_FILE = "evaluator.json"  # by the evaluator at its end: what it has cost
KEPT_SNAPSHOTS = "snapshots"  # if the run folder has this folder, evaluated snapshots are moved to it


def read_lines(path: Path) -> list[Record]:
    """All complete records of a file; an empty list if there is no file."""
    return list(Tail(path).read())


def read_object(path: Path) -> Record:
    """The JSON object in a file; an empty one if there is no file or no object in it."""
    return (_parse(path.read_bytes()) or {}) if path.exists() else {}


def reason(log: Path) -> str:
    """Why the process with this log ended: its exception. A process that was killed has none."""
    file = failure_file(log)
    if file.exists():
        return file.read_text(encoding="utf-8", errors="replace").strip()
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return no_exception(next((line.strip() for line in reversed(lines) if line.strip()), ""))


def no_exception(last_line: str) -> str:
    """The reason where no exception is recorded. `last_line`: of the output."""
    return f"no exception was recorded; the last line of its output: {last_line or 'none'}"


def failure(folder: Path) -> str | None:
    """Why the device with this folder failed, by its own record: the type and the text of the exception."""
    events = read_lines(folder / "events.jsonl")
    return next((str(e["reason"]) for e in reversed(events) if e.get("event") == "failed"), None)


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: a full disk leaves the file that was there."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


class Tail:
    """Follows a growing file. Each `read` yields the new complete records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0

    def read(self) -> Iterator[Record]:
        """The new records. An incomplete last line is read later. A damaged line in between is left out."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._at:  # a run that goes on has made it shorter
                self._at = 0
            file.seek(self._at)
            new = file.read()
        complete = new[: new.rfind(b"\n") + 1]
        self._at += len(complete)
        for line in complete.splitlines():
            record = _parse(line)
            if record is not None:
                yield record


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:  # half a line of a killed device, continued by its next process
        return None
    return record if isinstance(record, dict) else None


@dataclass
class RunRecords:
    """The records of a run. Device ids are in natural order (d2 before d10)."""

    folder: Path
    scenario: Scenario
    devices: list[str]
    metrics: dict[str, list[Record]] = field(default_factory=dict)
    events: dict[str, list[Record]] = field(default_factory=dict)
    evaluations: list[Record] = field(default_factory=list)
    consensus: dict[int, float] = field(default_factory=dict)  # by round
    run: Record = field(default_factory=dict)
    seen: list[Record] = field(default_factory=list)  # events of a launcher that was killed

    @property
    def injected(self) -> list[Record]:
        """The events that happened, in order: round, kind, device, t_s, and in virtual time also life."""
        return sorted(self.run.get("events", self.seen), key=event_order)

    @property
    def unfinished(self) -> bool:
        """Whether no device has reached the end."""
        return not any(e["tag"] == "end" for e in self.evaluations)

    def last_evaluations(self) -> list[Record]:
        """The evaluations at the end. In an unfinished run: the evaluations in rounds of the live devices."""
        if not self.unfinished:
            return self.tagged("end")
        last = {str(e["device"]): str(e["kind"]) for e in self.injected}
        return [e for e in self.tagged("round") if last.get(e["device"]) not in GONE]

    def tagged(self, tag: str) -> list[Record]:
        """The evaluations with this tag, by round."""
        return sorted((e for e in self.evaluations if e["tag"] == tag), key=lambda e: int(e["round"]))


def load(folder: Path) -> RunRecords:
    """Read the folder of a run. Raises InputError if `unweft run` did not write the folder."""
    if not (folder / "scenario.toml").is_file():
        raise InputError(
            f"{folder}: holds no run (no scenario.toml); allowed: a folder that `unweft run` wrote"
        )
    run = read_object(folder / "run.json")
    found = {path.name for path in (folder / "devices").glob("*") if path.is_dir()}
    seen = [line for line in read_lines(folder / INJECTED) if line["kind"] not in NO_EVENTS]
    records = RunRecords(folder, read(folder / "scenario.toml"), [], run=run, seen=seen)
    for device in in_order({*found, *run.get("devices", {})}):
        own = folder / "devices" / device
        lines = read_lines(own / "metrics.jsonl"), read_lines(own / "events.jsonl")
        metrics, events = with_lives(*lines)
        if not _never_joined(events):
            records.devices.append(device)
            records.metrics[device], records.events[device] = metrics, events
    for line in read_lines(folder / EVALUATIONS):
        if "consensus_error" in line:
            records.consensus[int(line["round"])] = float(line["consensus_error"])
        else:
            records.evaluations.append(line)
    return records


def _never_joined(events: Sequence[Record]) -> bool:
    """Whether the device has a process of a virtual run whose arrival never came due, and no other."""
    names = {event["event"] for event in events}
    return "never_due" in names and "started" not in names


def write_run(
    folder: Path,
    devices: Mapping[str, Record],
    events: Sequence[Record],
    not_done: Sequence[Record],
    epoch_ns: int,
    ended_s: float,
    resumed: Sequence[Record] = (),
) -> None:
    """Write run.json, which `load` reads.

    devices: the facts of the launcher on each device, with its exit status in `exit`. not_done: events of the
    scenario that did not happen. ended_s: seconds since the epoch of the run. resumed: one entry for each
    time that the run went on after an interruption: its first round, devices and t_s.
    """
    run = {
        "devices": devices,
        "events": events,
        "not_done": not_done,
        "epoch_ns": epoch_ns,
        "ended_s": ended_s,
        "resumed": resumed,
    }
    write_whole(folder / "run.json", json.dumps(run, indent=1))


def in_order(devices: set[str] | list[str]) -> list[str]:
    """Natural order: d2 before d10."""
    return sorted(devices, key=lambda d: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", d)])
