"""The state of a run just before and just after each event: norms of the blocks, and the learning graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from emulation.analysis.event_outcomes import InjectedEvent, injected_events
from emulation.analysis.records import Record, RunRecords, in_order
from emulation.report.series import name_of
from emulation.scenario.events import ARRIVALS

Norms = Mapping[str, Mapping[str, float]]  # by block and group
SHOWN_EVENTS = 6  # events at most that are shown in this way


@dataclass(frozen=True)
class Moment:
    """A time in the run: for each device, one closed round.

    With `until_s`: the last round closed by then. Else: the first round closed after `since_s`.
    """

    devices: list[str]
    until_s: float | None = None
    since_s: float = 0.0

    def pick(self, lines: list[Record]) -> Record | None:
        """The round of a device at this moment, of all its rounds in order; None if there is none."""
        if self.until_s is not None:
            return next((line for line in reversed(lines) if float(line["t1_s"]) <= self.until_s), None)
        return next((line for line in lines if float(line["t1_s"]) > self.since_s), None)


def moments(run: RunRecords) -> list[tuple[str, Moment]]:
    """Title and moment: before and after each of the first events, and the end."""
    found = []
    for event in injected_events(run)[:SHOWN_EVENTS]:
        name = name_of(event.record)
        found += [(f"before {name}", _before(event)), (f"after {name}", _after(event))]
    ended = in_order({str(e["device"]) for e in run.tagged("end")})
    return [*found, ("end", Moment(ended, until_s=math.inf))]


def _before(event: InjectedEvent) -> Moment:
    own = [] if event.record["kind"] in ARRIVALS or not event.record.get("device") else [event.device]
    return Moment(in_order([*event.survivors, *own]), until_s=event.t_s)


def _after(event: InjectedEvent) -> Moment:
    """After every survivor has noticed the event."""
    noticed = max((float(entry["t_s"]) for entry in event.detections().values()), default=event.t_s)
    own = [event.device] if event.record["kind"] in ARRIVALS else []
    return Moment(in_order([*event.survivors, *own]), since_s=noticed)


def norms(run: RunRecords, moment: Moment) -> Norms:
    """By block and group, the mean norm over the moment's devices."""
    found: dict[str, dict[str, list[float]]] = {}
    for device in moment.devices:
        line = moment.pick(run.metrics.get(device, []))
        for block, groups in line["norms"].items() if line else ():
            for group, norm in groups.items():
                found.setdefault(block, {}).setdefault(group, []).append(float(norm))
    return {b: {g: fmean(v) for g, v in groups.items()} for b, groups in found.items()}


def graph(run: RunRecords, moment: Moment) -> dict[tuple[str, str], float]:
    """The weights with which the devices mixed in their rounds: (device, neighbour) -> weight."""
    edges: dict[tuple[str, str], float] = {}
    for device in moment.devices:
        line = moment.pick(run.metrics.get(device, [])) or {}
        weights: Mapping[str, float] = line.get("weights", {})
        edges |= {(device, peer): float(w) for peer, w in weights.items() if peer != device and w > 0}
    return edges
