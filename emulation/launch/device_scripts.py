"""A scenario's events from the view of one device: in virtual time, each device does its own events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from emulation.analysis.lives import event_order
from emulation.analysis.records import Record, read_lines
from emulation.launch.start import Start
from emulation.scenario.events import ARRIVALS, GONE, OF_THE_NETWORK, EventConfig, Population, cut_off
from emulation.scenario.schema import Scenario
from peers.runtime.spec import ScriptedEvent
from transport.clocks.virtual import life_name


def script_of(scenario: Scenario, start: Start, device: str, life: int) -> tuple[ScriptedEvent, ...]:
    """The events that one life of a device does itself: its own ones, and every partition."""
    found, ended = [], start.first_life(device)
    for event in start.events:
        if event.kind in OF_THE_NETWORK:
            others = cut_off(device, event.groups, scenario.all_devices) if event.groups else frozenset()
            found.append(ScriptedEvent(event.round, event.kind, cut_off=others))
        elif event.device == device:
            if ended == life:
                found.append(ScriptedEvent(event.round, event.kind, event.duration_s or 0.0))
            ended += event.kind in GONE
    return tuple(found)


def present_at_start(scenario: Scenario, start: Start, device: str, life: int) -> list[str]:
    """The other devices, by `life_name`, that are live by the scenario when one life of a device starts."""
    population, lives = Population(start.devices, scenario.on_crash), Counter(start.lives)
    for event in start.events:
        if event.device == device and event.kind in ARRIVALS:
            if lives[device] == life:
                break
        elif device in start.devices and life == start.first_life(device):
            break
        population.apply(event)
        lives[event.device or ""] += event.kind in GONE
    return [life_name(other, lives[other]) for other in population.live if other != device]


def subject(event: EventConfig) -> str:
    """The device of an event, or the groups of a partition, as one text for the records."""
    return event.device or " | ".join(",".join(group) for group in event.groups)


def executed_events(out: Path, devices: Iterable[str]) -> list[Record]:
    """The events that the devices of a virtual run recorded, at the devices' own times, in order."""
    own, network = list[Record](), dict[tuple[int, str, int], Record]()
    for device in devices:
        repeated = Counter[tuple[int, str, int]]()
        for line in read_lines(out / "devices" / device / "events.jsonl"):
            if line["event"] != "scripted":
                continue
            event = {"round": line["at_round"], "kind": line["kind"], "device": device, "t_s": line["t_s"]}
            if line["kind"] in OF_THE_NETWORK:  # every life of every device records it; one record is enough
                same = line["at_round"], line["kind"], line.get("life", 0)
                repeated[same] += 1
                network.setdefault((*same[:2], repeated[same]), {**event, "device": ""})
            else:
                own.append(event | ({"life": line["life"]} if "life" in line else {}))
    return sorted([*own, *network.values()], key=event_order)


def not_executed(scenario: Scenario, executed: Iterable[Record]) -> list[EventConfig]:
    """The events of a scenario that have not happened. The same event may be listed more than once."""
    done = Counter(_what(int(e["round"]), str(e["kind"]), str(e["device"])) for e in executed)
    missing = []
    for event in scenario.events:
        what = _what(event.round, event.kind, event.device or "")
        missing += [] if done[what] > 0 else [event]
        done[what] -= 1
    return missing


def _what(round_: int, kind: str, device: str) -> tuple[int, str, str]:
    """A partition has no device. The launcher records its groups there, a device records nothing."""
    return round_, kind, "" if kind in OF_THE_NETWORK else device
