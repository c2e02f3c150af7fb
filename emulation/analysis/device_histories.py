"""What became of each device of a run that was interrupted: from the records of launcher and devices.

A departure counts if any record shows it: the launcher has sent the signal, the device has begun to leave,
its signed wish is in its folder, or another device has heard of it. So a leave stays a leave, although the
device was killed before it could tell anyone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from coordinator_free.identifiers import BlockKey
from emulation.analysis.records import Record, RunRecords
from emulation.scenario.events import ARRIVALS, GONE

BY_STRENGTH = ("crash", "retire", "leave")  # a leave asks for most


class Incarnation(NamedTuple):
    """One incarnation of a device. end: leave, retire or crash; "": no departure ended it."""

    key: BlockKey
    slot: int
    end: str


@dataclass(frozen=True)
class History:
    """The incarnations of a device in order. gone: the departure that it has not come back from, or ""."""

    incarnations: tuple[Incarnation, ...]
    gone: str


def find(run: RunRecords, injected: Iterable[Record], forgotten: Collection[BlockKey]) -> dict[str, History]:
    """The history of each device that was there. One whose process waited for its arrival was not.

    injected: the events that the launcher has recorded. forgotten: the tombstones of the run.
    """
    own: dict[str, list[Record]] = defaultdict(list)
    for event in injected:
        own[str(event["device"])].append(event)
    told = defaultdict[BlockKey, set[str]](set, {key: {"leave"} for key in forgotten})
    for key, kind in _told(run):
        told[key].add(kind)
    arrived = [device for device, found in own.items() if any(e["kind"] in ARRIVALS for e in found)]
    arrived += [d for d in run.devices if any(e["event"] == "started" for e in run.events[d])]
    devices = dict.fromkeys([*run.scenario.initial_devices, *arrived])
    return {device: _history(device, run.events.get(device, []), own[device], told) for device in devices}


def _told(run: RunRecords) -> Iterator[tuple[BlockKey, str]]:
    """The departures that other devices have heard of from the owner. A verdict of a crash may be wrong."""
    for events in run.events.values():
        for event in events:
            if event["event"] == "peer_gone" and event["kind"] in ("leave", "retire"):
                yield BlockKey(str(event["peer"]), int(event["incarnation"])), str(event["kind"])


def _history(
    device: str, events: list[Record], injected: list[Record], told: dict[BlockKey, set[str]]
) -> History:
    started_s = [float(e["t_s"]) for e in events if e["event"] == "started"]
    started_s += [float(e["t_s"]) for e in injected if e["kind"] in ARRIVALS]
    arrived_s = max(started_s, default=0.0)
    departures = [(float(e["t_s"]), str(e["kind"])) for e in injected if e["kind"] in GONE]
    departures += [(float(e["t_s"]), str(e["kind"])) for e in events if e["event"] == "leaving"]
    claims = [e for e in events if e["event"] == "slot"]
    ends_s = [float(e["t_s"]) for e in claims[1:]] + [float("inf")]
    incarnations, last = [], {kind for at_s, kind in departures if at_s >= arrived_s}
    for claim, end_s in zip(claims, ends_s, strict=True) if claims else ():
        key, since_s = BlockKey(device, int(claim["incarnation"])), float(claim["t_s"])
        kinds = {kind for at_s, kind in departures if since_s <= at_s < end_s} | told[key]
        incarnations.append(Incarnation(key, int(claim["slot"]), _strongest(kinds)))
        last |= kinds if since_s >= arrived_s else set()
    return History(tuple(incarnations), _strongest(last))


def _strongest(kinds: Collection[str]) -> str:
    return max(kinds, key=BY_STRENGTH.index, default="")
