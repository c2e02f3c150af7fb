"""A run whose devices were started one by one, in containers: what a launcher would have written of it.

A launcher knows what it did to whom, and has a judge beside the devices. Here both are made up for from what
the devices wrote: who came late has joined, who said so has left or retired, who stopped writing and was
held for dead by others has crashed. What `unweft churn` did is noted by it, and taken from there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emulation.analysis import records
from emulation.analysis.records import Record, RunRecords
from emulation.scenario.events import OF_THE_NETWORK
from emulation.scenario.loading import dump
from emulation.testbed import churn_log, epoch

FIELDS = ("round", "kind", "device", "duration_s")
SAME_S = 30.0  # what a device records of something and what was noted of it are no further apart


@dataclass(frozen=True)
class Life:
    """One process of a device, from its first record to its last, or to its leave."""

    device: str
    number: int
    start_s: float
    last_s: float
    events: list[Record]

    def of(self, kind: str) -> Record | None:
        return next((e for e in self.events if e["event"] == kind), None)


def complete(folder: Path) -> None:
    """Write what is missing in the folder of a run that had no launcher: run.json, evaluations.

    To what a launcher wrote, only `unweft churn`'s notes are added. Raises InputError where there is no run.
    """
    run = records.load(folder)
    if not (folder / epoch.FILE).exists():
        _add_notes(run)
        return
    if not run.run or run.run.get("rebuilt"):
        _write(run)
    if next((folder / "devices").glob("*/snapshots/*.safetensors"), None) is not None:
        _evaluate(folder)


def happened(run: RunRecords) -> list[Record]:
    """What befell the devices, in order: round, kind, device, t_s."""
    seen: list[Record] = [
        {"kind": kind, "device": device, "t_s": at_s}
        for device in run.devices
        for kind, at_s in _fates(run, _lives(run, device))
    ]
    found = _with_notes(seen, churn_log.read(run.folder, epoch.read(run.folder) or 0))
    return [{"round": _closed_by_all(run, e["t_s"], e["device"]), **e} for e in found]


def _with_notes(seen: list[Record], noted: list[Record]) -> list[Record]:
    rest = [event for event in seen if not any(_same(event, note) for note in noted)]
    return sorted(noted + rest, key=lambda e: (float(e["t_s"]), str(e["device"])))


def _same(event: Record, note: Record) -> bool:
    alike = event["device"] == note["device"] and event["kind"] == note["kind"]
    return alike and abs(float(event["t_s"]) - float(note["t_s"])) <= SAME_S


def _add_notes(run: RunRecords) -> None:
    """Once, since the launcher writes run.json once."""
    if not run.run or run.run.get("churned") or not (run.folder / churn_log.FILE).exists():
        return
    noted = churn_log.read(run.folder, int(run.run["epoch_ns"]))
    for event in noted:
        event["round"] = _closed_by_all(run, event["t_s"], event["device"])
    record = {**run.run, "events": _with_notes(run.run["events"], noted), "churned": True}
    _dump(run.folder, record)


def _dump(folder: Path, record: Record) -> None:
    (folder / "run.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def _lives(run: RunRecords, device: str) -> list[Life]:
    events = run.events[device]
    starts = [i for i, e in enumerate(events) if e["event"] == "started"]
    found = []
    for number, (first, end) in enumerate(zip(starts, [*starts[1:], len(events)], strict=True)):
        own = events[first:end]
        until_s = float(events[end]["t_s"]) if end < len(events) else float("inf")
        ends_s = [float(line["t1_s"]) for line in run.metrics[device] if float(line["t1_s"]) < until_s]
        left_s = [float(e["t_s"]) for e in own if e["event"] == "leaving"]
        last_s = left_s[0] if left_s else max([float(e["t_s"]) for e in own] + ends_s)
        found.append(Life(device, number, float(own[0]["t_s"]), last_s, own))
    return found


def _fates(run: RunRecords, lives: list[Life]) -> Iterator[tuple[str, float]]:
    """How each life of a device began and ended, where that was an event."""
    for life in lives:
        if life.number:
            yield "return", life.start_s
        elif life.device not in run.scenario.initial_devices:
            yield "join", life.start_s
        leaving = life.of("leaving")
        if leaving is not None:
            yield str(leaving["kind"]), float(leaving["t_s"])
        elif life.of("finished") is None and _held_for_dead(run, life):
            yield "crash", life.last_s


def _held_for_dead(run: RunRecords, life: Life) -> bool:
    """Whether others found it crashed after the last that it wrote: else it may be alive still."""
    return any(
        e["event"] == "peer_gone"
        and (e.get("peer"), e.get("kind")) == (life.device, "crash")
        and float(e["t_s"]) >= life.last_s
        for device in run.devices
        for e in run.events[device]
    )


def _closed_by_all(run: RunRecords, at_s: float, but: str) -> int:
    """The last round that all others who were at work then had closed; 0 before any."""
    lives = [life for device in run.devices if device != but for life in _lives(run, device)]
    closed = [
        [
            int(line["round"])
            for line in run.metrics[life.device]
            if life.start_s < float(line["t1_s"]) <= at_s
        ]
        for life in lives
        if life.start_s <= at_s < life.last_s
    ]
    return min((max(rounds) for rounds in closed if rounds), default=0)


def _write(run: RunRecords) -> None:
    """run.json, and a scenario with what happened in place of what was to happen: run it again."""
    events = happened(run)
    moments = [float(line["t1_s"]) for lines in run.metrics.values() for line in lines]
    moments += [float(e["t_s"]) for lines in run.events.values() for e in lines]
    record = {
        "rebuilt": True,
        "devices": {device: _process(run, device) for device in run.devices},
        "events": events,
        "epoch_ns": epoch.read(run.folder),
        "ended_s": max(moments, default=0.0),
    }
    _dump(run.folder, record)
    listed = [_listed(event) for event in events]
    changed = run.scenario.model_dump(mode="json", exclude_none=True) | {"event": listed, "churn": {}}
    scenario = type(run.scenario).model_validate_json(json.dumps(changed))
    (run.folder / "scenario.toml").write_text(dump(scenario), encoding="utf-8")


def _listed(event: Record) -> Record:
    """As a scenario says it."""
    fields = ("round", "kind", "duration_s") if event["kind"] in OF_THE_NETWORK else FIELDS
    listed = {key: event[key] for key in fields if event.get(key) is not None}
    if event["kind"] == "partition":
        listed["groups"] = [group.split(",") for group in event["device"].split(" | ")]
    return listed


def _process(run: RunRecords, device: str) -> Record:
    lives = _lives(run, device)
    last = lives[-1] if lives else None
    started = (last.of("started") if last else None) or {}
    return {"pid": started.get("pid"), "exit": 0 if last and last.of("finished") else None}


def _evaluate(folder: Path) -> None:
    from emulation.analysis import evaluator

    marker = folder / evaluator.DONE_MARKER
    marker.touch()
    try:
        evaluator.main(folder, records.load(folder).scenario)
    finally:
        marker.unlink()
