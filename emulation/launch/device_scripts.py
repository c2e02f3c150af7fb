"""A scenario's events from the view of one device: in virtual time, each device does its own events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from emulation.analysis.records import Record, read_lines
from emulation.scenario.events import ARRIVALS, GONE, OF_THE_NETWORK, EventConfig, Population, cut_off
from emulation.scenario.schema import Scenario
from peers.runtime.spec import ScriptedEvent
from transport.clocks.virtual import life_name


def script_of(scenario: Scenario, device: str, life: int) -> tuple[ScriptedEvent, ...]:
    """The events that one life of a device does itself: its own ones, and every partition."""
    found, ended = [], 0
    for event in scenario.events:
        if event.kind in OF_THE_NETWORK:
            others = cut_off(device, event.groups, scenario.all_devices) if event.groups else frozenset()
            found.append(ScriptedEvent(event.round, event.kind, cut_off=others))
        elif event.device == device:
            if ended == life:
                found.append(ScriptedEvent(event.round, event.kind, event.duration_s or 0.0))
            ended += event.kind in GONE
    return tuple(found)


def present_at_start(scenario: Scenario, device: str, life: int) -> list[str]:
    """The other devices, by `life_name`, that are live by the scenario when one life of a device starts."""
    population, lives = Population(scenario.initial_devices, scenario.on_crash), Counter[str]()
    for event in scenario.events:
        if event.device == device and event.kind in ARRIVALS:
            if lives[device] == life:
                break
        elif life == 0 and device in scenario.initial_devices:
            break
        population.apply(event)
        lives[event.device or ""] += event.kind in GONE
    return [life_name(other, lives[other]) for other in population.live if other != device]


def subject(event: EventConfig) -> str:
    """The device of an event, or the groups of a partition, as one text for the records."""
    return event.device or " | ".join(",".join(group) for group in event.groups)


def executed_events(out: Path, devices: Iterable[str]) -> list[Record]:
    """The events that the devices of a virtual run recorded, at the devices' own times."""
    found: dict[tuple[int, str, str], Record] = {}
    for device in devices:
        for line in read_lines(out / "devices" / device / "events.jsonl"):
            if line["event"] == "scripted":
                network = line["kind"] in OF_THE_NETWORK  # every device records it; one record is enough
                about = "" if network else device
                event = {"round": line["at_round"], "kind": line["kind"], "device": about, "t_s": line["t_s"]}
                found.setdefault((line["at_round"], line["kind"], about), event)
    return list(found.values())
