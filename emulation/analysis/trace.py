"""trace.json: the timeline of a run in the JSON format of Chrome traces, which Perfetto opens.

One process for each device, one thread for each of its lanes. Times are microseconds of the run's clock.
Source: "Trace Event Format" (Google), events of the kinds M, X, i, s and f.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from emulation.analysis import records
from emulation.analysis.records import Record, RunRecords

FILE = "trace.json"
OPEN = "open it at https://ui.perfetto.dev or chrome://tracing"
LANES = ("rounds", "work", "send", "receive", "decisions", "events")
RUN = 0  # the process with the events of the scenario
DECISIONS = ("decision", "undecided", "diagnosis")
SHORTEST_S = 2e-6  # of a slice: an arrow needs a slice around its end
LONGEST_FIELD = 2000  # characters of a field in `args`; a decision lists every group


@dataclass
class Interval:
    """A time in which a device sends to, or receives from, others. `about`: bytes by the other device."""

    start_s: float
    end_s: float
    about: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Flow:
    """The data of one device for another in one round."""

    source: str
    target: str
    depart_s: tuple[float, float]
    arrive_s: tuple[float, float]
    wire_bytes: int


def write(folder: Path) -> Path:
    """Write trace.json into the folder of a run; returns its path. Raises InputError for another folder."""
    path = folder / FILE
    made = {"displayTimeUnit": "ms", "traceEvents": list(events(records.load(folder)))}
    records.write_whole(path, json.dumps(made, separators=(",", ":"), allow_nan=False))
    return path


def events(run: RunRecords) -> Iterator[Record]:
    """All events of the trace."""
    yield _meta(RUN, 0, "process_name", "the run")
    for event in run.injected:
        yield _instant(RUN, 0, str(event["kind"]), float(event["t_s"]), event, scope="g")
    processes = {device: number for number, device in enumerate(run.devices, start=1)}
    flows = [flow for flow in _flows(run) if flow.source in processes]
    for device, process in processes.items():
        yield _meta(process, 0, "process_name", device)
        for lane, name in enumerate(LANES):
            yield _meta(process, lane, "thread_name", name)
            yield {**_meta(process, lane, "thread_sort_index", ""), "args": {"sort_index": lane}}
        for line in run.metrics[device]:
            yield from _round(process, line)
        yield from _traffic(process, device, flows)
        for event in run.events[device]:
            lane = LANES.index("decisions" if event["event"] in DECISIONS else "events")
            yield _instant(process, lane, str(event["event"]), float(event["t_s"]), event)
    for number, flow in enumerate(flows, start=1):
        yield from _arrow(number, flow, processes)


def _round(process: int, line: Record) -> Iterator[Record]:
    """A round, its local steps, and the wait for the neighbours."""
    start_s, end_s = float(line["t0_s"]), float(line["t1_s"])
    trained_s = min(end_s, start_s + float(line["train_s"]))
    about: Record = {
        name: line[name] for name in ("loss", "steps", "spent_bytes", "withheld", "sent") if name in line
    }
    yield _slice(
        process, "rounds", f"round {line['round']}", start_s, end_s, {"phase": line["phase"], **about}
    )
    yield _slice(process, "work", f"{line['steps']} local steps", start_s, trained_s, {})
    yield _slice(process, "work", "wait", trained_s, end_s, {})


# -- messages ----------------------------------------------------------------------------------------------
def _flows(run: RunRecords) -> list[Flow]:
    return [
        Flow(
            source,
            device,
            (float(burst["depart_s"][0]), float(burst["depart_s"][1])),
            (float(burst["arrive_s"][0]), float(burst["arrive_s"][1])),
            int(burst["bytes"]),
        )
        for device in run.devices
        for line in run.metrics[device]
        for source, burst in line.get("arrivals", {}).items()
    ]


def _traffic(process: int, device: str, flows: Iterable[Flow]) -> Iterator[Record]:
    """The lanes `send` and `receive`: times that overlap are one slice, because a thread does one thing."""
    sent = [Interval(*f.depart_s, {f.target: f.wire_bytes}) for f in flows if f.source == device]
    taken = [Interval(*f.arrive_s, {f.source: f.wire_bytes}) for f in flows if f.target == device]
    for lane, found in (("send", sent), ("receive", taken)):
        for one in merged(found):
            yield _slice(process, lane, lane, one.start_s, one.end_s, {"bytes": one.about})


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The union of intervals as intervals that do not touch, in order."""
    found: list[Interval] = []
    for one in sorted(intervals, key=lambda one: (one.start_s, one.end_s)):
        if found and one.start_s <= found[-1].end_s + SHORTEST_S:
            last = found[-1]
            last.end_s = max(last.end_s, one.end_s)
            for peer, count in one.about.items():
                last.about[peer] = last.about.get(peer, 0) + count
        else:
            found.append(Interval(one.start_s, one.end_s, dict(one.about)))
    return found


def _arrow(number: int, flow: Flow, processes: Mapping[str, int]) -> Iterator[Record]:
    """A flow from the slice in which the data departed to the slice in which they arrived."""
    head = {"cat": "message", "name": "data", "id": number}
    source, target = processes[flow.source], processes[flow.target]
    yield {**head, "ph": "s", **_at(source, "send", flow.depart_s[0])}
    yield {**head, "ph": "f", "bp": "e", **_at(target, "receive", flow.arrive_s[1])}


# -- single events -----------------------------------------------------------------------------------------
def _at(process: int, lane: str, at_s: float) -> Record:
    return {"pid": process, "tid": LANES.index(lane), "ts": _us(at_s)}


def _slice(process: int, lane: str, name: str, start_s: float, end_s: float, about: Record) -> Record:
    """A complete event. Start and end are rounded, not the duration, so that neighbours still touch."""
    place = _at(process, lane, start_s)
    return {"ph": "X", "name": name, **place, "dur": max(1, _us(end_s) - int(place["ts"])), "args": about}


def _instant(process: int, lane: int, name: str, at_s: float, about: Record, scope: str = "t") -> Record:
    kept = {key: value for key, value in about.items() if len(json.dumps(value)) <= LONGEST_FIELD}
    return {"ph": "i", "s": scope, "name": name, "pid": process, "tid": lane, "ts": _us(at_s), "args": kept}


def _meta(process: int, lane: int, kind: str, name: str) -> Record:
    return {"ph": "M", "name": kind, "pid": process, "tid": lane, "ts": 0, "args": {"name": name}}


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
