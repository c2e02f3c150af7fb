"""Reconstructs the records that a launcher would have written, for devices that were started one by one.

A launcher records its events and runs an evaluator beside the devices. Without a launcher, this module finds
the events in the records of the devices: a device that started late has joined; a device that recorded a
leave has left or retired; a device whose records stop has crashed, if another device detected that. Events of
`unweft churn` are read from its log. The evaluation runs afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emulation.analysis import records
from emulation.analysis.effects import seen_as_crashed, took_effect
from emulation.analysis.records import Record, RunRecords
from emulation.scenario.events import OF_THE_NETWORK
from emulation.scenario.loading import dump
from emulation.testbed import churn_log, epoch, id_leases

FIELDS = ("round", "kind", "device", "duration_s")
SAME_S = 30.0  # greatest distance between a device's record of an event and churn's log of it


@dataclass(frozen=True)
class Life:
    """One process of a device, from its first record to its last one or to its leave."""

    device: str
    number: int
    start_s: float
    last_s: float
    events: list[Record]

    def first_event(self, kind: str) -> Record | None:
        """The first recorded event of this kind."""
        return next((e for e in self.events if e["event"] == kind), None)


def complete(folder: Path) -> None:
    """Write the missing files of a run without a launcher: run.json and evaluations.

    To the run.json of a launcher, only the events of `unweft churn` are added.
    Raises InputError if the folder holds no run.
    """
    run = records.load(folder)
    one_by_one = (folder / epoch.FILE).exists()
    if run.run and not run.run.get("rebuilt"):
        _add_churn_log(run)
    elif one_by_one:
        _write(run)
    if one_by_one and next((folder / "devices").glob("*/snapshots/*.safetensors"), None) is not None:
        _evaluate(folder)


def has_ended(folder: Path) -> bool:
    """Whether no device of the run is alive. A launcher writes run.json when all have ended."""
    if (folder / epoch.FILE).exists():
        return id_leases.any_claimed(folder) and not id_leases.any_alive(folder)
    return (folder / "run.json").exists()


def find_events(run: RunRecords) -> list[Record]:
    """All events of devices, in order: round, kind, device, t_s."""
    recorded: list[Record] = [
        {"kind": kind, "device": device, "t_s": at_s}
        for device in run.devices
        for kind, at_s in _events_of_lives(run, _lives(run, device))
    ]
    found = _merge(recorded, _logged(run, epoch.read(run.folder) or 0))
    return [{"round": _closed_by_all(run, e["t_s"], e["device"]), **e} for e in found]


def _logged(run: RunRecords, epoch_ns: int) -> list[Record]:
    """The events of `unweft churn` that had an effect."""
    logged = churn_log.read(run.folder, epoch_ns)
    return [event for event in logged if took_effect(event, run.events.get(event["device"], []))]


def _merge(recorded: list[Record], logged: list[Record]) -> list[Record]:
    """Both lists in order of time. An event that is in both is taken from churn's log."""
    rest = [event for event in recorded if not any(_same(event, other) for other in logged)]
    return sorted(logged + rest, key=lambda e: (float(e["t_s"]), str(e["device"])))


def _same(event: Record, other: Record) -> bool:
    alike = event["device"] == other["device"] and event["kind"] == other["kind"]
    return alike and abs(float(event["t_s"]) - float(other["t_s"])) <= SAME_S


def _add_churn_log(run: RunRecords) -> None:
    """Add the events of `unweft churn` to a launcher's run.json, once."""
    if run.run.get("churned") or not (run.folder / churn_log.FILE).exists():
        return
    logged = _logged(run, int(run.run["epoch_ns"]))
    for event in logged:
        event["round"] = _closed_by_all(run, event["t_s"], event["device"])
    record = {**run.run, "events": _merge(run.run["events"], logged), "churned": True}
    _dump(run.folder, record)


def _dump(folder: Path, record: Record) -> None:
    records.write_whole(folder / "run.json", json.dumps(record, indent=1))


def _lives(run: RunRecords, device: str) -> list[Life]:
    events, found = run.events[device], []
    for number in sorted({int(e["life"]) for e in events if e["event"] == "started"}):
        own = [e for e in events if e["life"] == number]
        ends_s = [float(line["t1_s"]) for line in run.metrics[device] if line["life"] == number]
        left_s = [float(e["t_s"]) for e in own if e["event"] == "leaving"]
        last_s = left_s[0] if left_s else max([float(e["t_s"]) for e in own] + ends_s)
        found.append(Life(device, number, float(own[0]["t_s"]), last_s, own))
    return found


def _events_of_lives(run: RunRecords, lives: list[Life]) -> Iterator[tuple[str, float]]:
    """Kind and time (s) of the events at the starts and ends of a device's lives."""
    for life in lives:
        if life.number:
            yield "return", life.start_s
        elif life.device not in run.scenario.initial_devices:
            yield "join", life.start_s
        leaving = life.first_event("leaving")
        if leaving is not None:
            yield str(leaving["kind"]), float(leaving["t_s"])
        elif life.first_event("finished") is None and _detected_as_crashed(run, life):
            yield "crash", life.last_s


def _detected_as_crashed(run: RunRecords, life: Life) -> bool:
    return seen_as_crashed(life.device, life.last_s, (e for d in run.devices for e in run.events[d]))


def _closed_by_all(run: RunRecords, at_s: float, excluded: str) -> int:
    """The last round that all other live devices had closed at a time; 0 if there is none."""
    lives = [life for device in run.devices if device != excluded for life in _lives(run, device)]
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
    """Write run.json, and a scenario with the events that happened, with which the run can be repeated."""
    events = find_events(run)
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
    listed = [_as_scenario_event(event) for event in events]
    changed = run.scenario.model_dump(mode="json", exclude_none=True) | {"event": listed, "churn": {}}
    scenario = type(run.scenario).model_validate_json(json.dumps(changed))
    (run.folder / "scenario.toml").write_text(dump(scenario), encoding="utf-8")


def _as_scenario_event(event: Record) -> Record:
    """An event as a scenario lists it."""
    fields = ("round", "kind", "duration_s") if event["kind"] in OF_THE_NETWORK else FIELDS
    listed = {key: event[key] for key in fields if event.get(key) is not None}
    if event["kind"] == "partition":
        listed["groups"] = [group.split(",") for group in event["device"].split(" | ")]
    return listed


def _process(run: RunRecords, device: str) -> Record:
    lives = _lives(run, device)
    last = lives[-1] if lives else None
    started = (last.first_event("started") if last else None) or {}
    return {"pid": started.get("pid"), "exit": 0 if last and last.first_event("finished") else None}


def _evaluate(folder: Path) -> None:
    from emulation.analysis import evaluator

    marker = folder / evaluator.DONE_MARKER
    marker.touch()
    try:
        evaluator.main(folder, records.load(folder).scenario)
    finally:
        marker.unlink()
