"""A scenario's events as what each device does by itself in virtual time, and what it has done of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from emulation.analysis.records import Record, read_lines
from emulation.scenario.events import ARRIVALS, GONE, OF_THE_NETWORK, EventConfig, Population, cut_off
from emulation.scenario.schema import Scenario
from peers.runtime.spec import ScriptedEvent
from transport.clocks.virtual import life_name


def scripts(scenario: Scenario, device: str, life: int) -> tuple[ScriptedEvent, ...]:
    """What one life of a device does: its own events from its start to its end, and every partition."""
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


def met(scenario: Scenario, device: str, life: int) -> list[str]:
    """Who is there, by `life_name`, when one life of a device starts: whom it can begin with."""
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


def shown(event: EventConfig) -> str:
    """Whom an event concerns, for the records: a device, or the groups of a partition."""
    return event.device or " | ".join(",".join(group) for group in event.groups)


def acted_out(out: Path, devices: Iterable[str]) -> list[Record]:
    """What the devices of a virtual run did as its scenario says, at their own times."""
    found: dict[tuple[int, str, str], Record] = {}
    for device in devices:
        for line in read_lines(out / "devices" / device / "events.jsonl"):
            if line["event"] == "scripted":
                network = line["kind"] in OF_THE_NETWORK  # all take part in it: once is enough
                whom = "" if network else device
                event = {"round": line["at_round"], "kind": line["kind"], "device": whom, "t_s": line["t_s"]}
                found.setdefault((line["at_round"], line["kind"], whom), event)
    return list(found.values())
