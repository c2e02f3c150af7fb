"""The state of a run as JSON for the page: at first everything, then what is new."""

from __future__ import annotations

from dataclasses import dataclass

from emulation.analysis.records import Record, in_order
from emulation.watch.feed import Entry
from emulation.watch.live_device import LiveDevice
from emulation.watch.live_run import LiveRun

RESIDUALS = ("local", "consensus", "heterogeneity")


@dataclass
class Cursor:
    """How much of the growing lists a page has. A new page, also after a reload, begins with nothing."""

    feed: int = 0
    spans: int = 0
    evaluations: int = 0
    decisions: int = 0


def update(run: LiveRun, cursor: Cursor) -> Record:
    """What to send to a page that has the lists up to `cursor`; moves the cursor.

    `first`: the page forgets what it had. Lists grow; all else replaces the values before.
    """
    first = cursor == Cursor()
    made = {
        "first": first,
        "run": _run(run),
        "devices": [_device(run, run.devices[device]) for device in in_order(list(run.devices))],
        "links": _links(run),
        "accuracy": [_accuracy(run, device) for device in in_order(list(run.latest))],
        "feed": [_entry(entry) for entry in run.feed.changed_since(cursor.feed)],
        "spans": [
            (s.device, s.kind, round(s.start_s, 4), round(s.end_s, 4), s.round)
            for s in run.spans[cursor.spans :]
        ],
        "evaluations": [
            (e.device, e.round, e.tag, e.by_shard) for e in run.evaluations[cursor.evaluations :]
        ],
        "decisions": [_decision(event) for event in run.decisions[cursor.decisions :]],
    }
    cursor.feed, cursor.spans = run.feed.version, len(run.spans)
    cursor.evaluations, cursor.decisions = len(run.evaluations), len(run.decisions)
    return made


def _run(run: LiveRun) -> Record:
    scenario = run.scenario
    if scenario is None:
        return {"name": run.folder.name, "waiting": True}
    return {
        "name": scenario.name,
        "folder": str(run.folder),
        "rounds": scenario.round.count,
        "rounds_done": run.rounds_done(),
        "clock": scenario.clock,
        "topology": scenario.topology.kind,
        "mixing": scenario.mixing.mode,
        "policy": scenario.correction.policy,
        "seconds": run.newest_s,
        "left_s": run.left_s(),
        "ended": run.ended,
        "read_at": run.read_at,
        "lag": run.evaluator_lag().text(),
        "sent_bytes": sum(device.sent_bytes() for device in run.devices.values()),
        "spent_bytes": sum(sum(device.spent_bytes.values()) for device in run.devices.values()),
        "granted_bytes": sum(device.granted_bytes for device in run.devices.values()),
    }


def _device(run: LiveRun, device: LiveDevice) -> Record:
    return {
        "id": device.id,
        "state": device.state,
        "alive": device.alive,
        "joined": not device.initial or device.life > 0,
        "since_s": device.since_s,
        "suspected_by": sorted(device.suspected_by),
        "round": device.round,
        "phase": device.phase,
        "loss": device.loss,
        "slot": device.slot,
        "neighbours": device.neighbours,
        "sent_bytes": device.sent_bytes(),
        "spent_bytes": sum(device.spent_bytes.values()),
        "granted_bytes": device.granted_bytes,
    }


def _links(run: LiveRun) -> list[tuple[str, str, int, float | None]]:
    """Source, target, bytes sent, and the median latency in s as the target measured it."""
    return [
        (device.id, peer, sent, run.devices[peer].latency_s(device.id) if peer in run.devices else None)
        for device in run.devices.values()
        for peer, sent in device.sent_to().items()
    ]


def _accuracy(run: LiveRun, device: str) -> Record:
    found = run.latest[device]
    return {"device": device, "round": found.round, "tag": found.tag, "by_shard": found.by_shard}


def _entry(entry: Entry) -> Record:
    return {
        "number": entry.number,
        "t_s": entry.t_s,
        "round": entry.round,
        "kind": entry.kind,
        "device": entry.device,
        "text": entry.sentence(),
    }


def _decision(event: Record) -> Record:
    """Residuals are in the unit of the loss; `priority`: the share p of each group (method 7)."""
    measured = event.get("residuals", {})
    return {
        "epoch": event.get("epoch"),
        "round": event["round"],
        "reason": str(event.get("reason", "")),
        "groups": event.get("groups", {}),
        "residuals": {group: {name: of.get(name) for name in RESIDUALS} for group, of in measured.items()},
        "priority": {group: of.get("p") for group, of in measured.items()},
    }
